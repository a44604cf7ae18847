"""Imported by the process that engines are forked from, and by nobody else: it ends with the world that started it."""

from tests.faults.parent import end_with_parent

end_with_parent()
