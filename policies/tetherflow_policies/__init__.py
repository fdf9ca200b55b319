"""Cache policies that ship with Tetherflow, registered through the public `tetherflow.policies` group."""
