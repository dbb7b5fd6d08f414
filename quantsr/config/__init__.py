"""Option files: the schema, reading (`yaml_file`, `layers`, `load`), checks before anything is
built (`rules`, `folders`, `networks`), and the page that documents them (`docs`). The schema
imports neither torch nor BasicSR."""

from quantsr.config.load import load_options
from quantsr.config.schema import (
    DatasetOptions,
    DistillOptions,
    LoggerOptions,
    MetricOptions,
    NetworkOptions,
    OptimizerOptions,
    Options,
    PathOptions,
    SchedulerOptions,
    TrainOptions,
    ValOptions,
)

__all__ = [
    "DatasetOptions",
    "DistillOptions",
    "LoggerOptions",
    "MetricOptions",
    "NetworkOptions",
    "OptimizerOptions",
    "Options",
    "PathOptions",
    "SchedulerOptions",
    "TrainOptions",
    "ValOptions",
    "load_options",
]
