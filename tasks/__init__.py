"""What a model is asked to do, one file per task family: the data, the loss and the metric."""

from tasks import text

# Name in `config.task` -> module with load, batch, losses, windows, summarise and baselines, as in tasks/text.py.
TASKS = {"text": text}
