"""Cache policies that ship with Tetherflow; they register through the public `tetherflow.policies` entry points."""
