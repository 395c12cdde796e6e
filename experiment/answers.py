"""What trained models answer at any length: compiled once for the runs of a variant, in parts that fit into memory."""

from itertools import chain
from pathlib import Path

import jax

from experiment import comparison, measure, settings
from experiment.devices import split_rows
from experiment.judging import evaluate, restored, scorer, uploaded
from experiment.learner import make_learner
from tasks import TASKS


class Answers:
    """Judges runs at any length; it holds the model and the programs of the last variant, the weights of its last run.

    Runs of one variant differ in their numbers alone, so that they share what was compiled.

    Args:
      workdir: folder of the runs.
      config: the comparison's.
      warn: takes a line about a checkpoint that is not whole.
    """

    def __init__(self, workdir, config, warn):
        self.workdir, self.warn = workdir, warn
        self.tokens = config.train.batch_size * TASKS[config.task].tokens(settings.size(config))  # of a part, at most
        self.name = self.seed = self.learner = self.weights = self.missing = None
        self.programs = {}

    def __call__(self, name, config, run, exam, length, asked):
        """What one run answers.

        Args:
          name: of the variant.
          config: its full config.
          run: its result.json.
          exam: an `experiment.exams.Exam`.
          length: T.
          asked: the exam's `exams.Asked` at this length.

        Returns:
          (rows as `Exam.score`, seconds without compiling, the device in words).

        Raises:
          SettingsError: there is no whole checkpoint of its last step.
          ValueError, NotImplementedError: the model cannot take this length.
          MemoryError: it does not fit into memory.
        """
        if self.name != name:
            self.learner, self.programs = make_learner(config, run["seed"]), {}
            self.name, self.seed = name, None
        if self.seed != run["seed"]:
            self.seed, self.weights, self.missing = run["seed"], None, None
            try:
                self.weights = restored(run, self.learner, self.workdir, self.warn)
            except settings.SettingsError as error:  # the same at every length: read and warned of once
                self.missing = error
        if self.missing:
            raise self.missing
        sharding, count = split_rows(self.weights), len(asked.owners)
        devices = sharding.mesh.size
        most = min(max(1, self.tokens // exam.tokens(length) // devices), -(-count // devices)) * devices
        parts = uploaded(asked.examples, count, most, sharding)
        try:
            first = next(parts)
            key = exam.score, *((name, array.shape, array.dtype) for name, array in sorted(first.items()))
            if key not in self.programs:
                self.programs[key] = self.compiled(exam, first)
            rows, seconds = evaluate(self.programs[key], self.weights, chain([first], parts), count)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(str(error).splitlines()[0]) from error
        return rows, sum(seconds), comparison.describe_devices(sharding.device_set)

    def compiled(self, exam, part):
        """The compiled score of a part of this shape; on a CPU, which would be killed, refused if it does not fit."""
        program = measure.compile(scorer(self.learner, exam), self.weights, part)
        free = free_memory() if jax.default_backend() == "cpu" else None
        if free is not None and program.temporary_bytes > free:
            raise MemoryError(f"wanted {program.temporary_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        return program.call


def free_memory():
    """Bytes that a new program could have, None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
