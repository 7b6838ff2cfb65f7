"""Golden file of TensorBoard events, by TensorBoard's own messages and record writer.

    python tests/golden/make_events.py      # versions: see README.md in this folder

events/run.tfevents: two series as `SummaryWriter.add_scalar` writes them, at known times.
"""

import io
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = Path(__file__).parent / "events"
BEGUN = 1_700_000_000.5


def main():
    OUT.mkdir(exist_ok=True)
    path = OUT / "run.tfevents"
    with open(path, "wb") as file:
        writer = RecordWriter(io.BufferedWriter(io.FileIO(file.fileno(), "wb", closefd=False)))
        events = [Event(wall_time=BEGUN, file_version="brain.Event:2")]
        for tag, points in {"loss": [(0, 3.25), (10, 2.1), (300, 1e-7)], "validation/mean_recall": [(70000, 56.4)]}.items():
            for step, value in points:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                events.append(Event(wall_time=BEGUN + step / 2, step=step, summary=summary))
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()
    read(path)


def read(path):
    """What TensorBoard reads of a file; also of one that rscapret wrote, named on the command line."""
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            print(event.step, event.wall_time, value.tag, list(value.tensor.float_val))


if __name__ == "__main__":
    read(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
