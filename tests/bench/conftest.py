from tests.toys import toy

__all__ = ["toy"]
