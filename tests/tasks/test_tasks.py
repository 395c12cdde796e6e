"""The table of tasks: who asks for one waits for no other."""

import subprocess
import sys

from tasks import TASKS


def test_a_task_is_imported_when_it_is_asked_for():
    program = "import sys; from tasks import TASKS; TASKS['text']; print(*sorted(x for x in sys.modules if x[:6] == 'tasks.'))"
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["tasks.source", "tasks.text"]


def test_it_is_a_mapping_of_names_to_modules():
    assert {name: f"tasks.{name}" for name in TASKS} == {name: task.__name__ for name, task in TASKS.items()}
    assert len(TASKS) == len(set(TASKS)) and "source" not in TASKS and None not in TASKS
