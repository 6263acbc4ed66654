"""`python -m holdfast_demo`: a real training job on a real Kubernetes, one fault after another, and what each one cost."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from . import diagnose, report, setting, stages, timeline
from .clusters import Cluster
from .commands import ROOT
from .errors import DemoError
from .kube import ApiError
from .progress import Progress
from .report import Result
from .setting import Release

RELEASE = Release()
_EXISTING = """\
CLUSTER=existing uses the current kube context (kubectl and helm on PATH) and reads from the environment:
  HOLDFAST_IMAGES         operator=REF,sidecar=REF,gpt=REF: images that the cluster can pull
  HOLDFAST_STORAGE_CLASS  a class for a ReadWriteMany claim, and/or
  HOLDFAST_S3_URL         s3://BUCKET/PREFIX, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION
  HOLDFAST_TORCH_SITE     a folder on every node with torch in it, if the gpt image has none
Faults that need the machines under the cluster are skipped there.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every fault was recovered from as promised, 1 if not, 130 when interrupted."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    demo = Demo(options)
    try:
        return 0 if demo.passed() else 1
    except KeyboardInterrupt:
        print("demo: interrupted, cleaning up", file=sys.stderr)
        return 130
    finally:
        demo.clean_up()


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__, epilog=_EXISTING, formatter_class=raw)
    parser.add_argument("--keep", action="store_true", help="leave cluster, operator and job as they are at the end")
    parser.add_argument("--steps", type=int, default=stages.STEPS, help="training steps of the job (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of demo.json and demo.png")
    parser.add_argument("--set-up-began", type=float, default=None, help=argparse.SUPPRESS)
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Demo:
    """One run, and what has to be taken away again after it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.progress = Progress()
        self.cluster = Cluster()
        self.began = options.set_up_began or time.time()
        self._keep_cluster = True
        self._prepared: stages.Prepared | None = None
        self._faulty: stages.Faulty | None = None

    def passed(self) -> bool:
        """Run it; a failure is explained on stderr."""
        try:
            return self.run()
        except (DemoError, ApiError) as error:
            print(f"demo: {error}", file=sys.stderr)
            self.explain()
            return False

    def run(self) -> bool:
        """The whole demo; whether all of it held."""
        self._up()
        prepared = self._prepared = stages.prepare(self.cluster, RELEASE, self.progress)
        set_up = time.time() - self.began
        self.progress.say("set-up", f"done, {set_up:.0f} s since the start")
        plain, steps = stages.plain_run(prepared, self.progress, self.options.steps)
        faulty = self._faulty = stages.begin_faulty(prepared, steps)
        self.progress.say("job", f"the same job again, {steps} steps, now with faults")
        try:
            stages.break_it(faulty, prepared, self.progress)
            run = stages.end_faulty(faulty)
        finally:
            self._draw()
        weights = (plain.weights, run.weights)
        seconds = time.time() - self.began
        result = Result(
            tuple(faulty.outcomes), tuple(faulty.skipped), weights, set_up, seconds, steps, plain.step_seconds, run.goodput
        )
        return self._report(result)

    def _report(self, result: Result) -> bool:
        out: Path = self.options.out
        result.write(out / "demo.json")
        print(f"\n{result.text()}\n\n{out / 'demo.json'}\n{out / 'demo.png'}", flush=True)
        if not result.passed:
            print("demo: not everything held, see above", file=sys.stderr)
        return result.passed

    def _up(self) -> None:
        if self.cluster.existing:
            self.progress.say("cluster", f"the current context of {self.cluster.kubeconfig()}")
            setting.existing_images()
            return
        self._keep_cluster = self.cluster.is_up()
        if self._keep_cluster:
            self.progress.say("cluster", "is up already, and will stay")
            return
        with self.progress.stage("cluster", "one control plane and three nodes"):
            self.cluster.up()

    def _draw(self) -> None:
        """Also of a run that did not come to its end: then it is needed most."""
        if self._faulty is None:
            return
        samples = self._faulty.scene.job.log.samples
        if samples:
            title = f"One GPT training job, {len(self._faulty.outcomes)} faults (Holdfast)"
            timeline.draw(self.options.out / "demo.png", samples, self._faulty.outcomes, title)

    def explain(self) -> None:
        """After a failure: the table so far, the job as kubectl shows it, and all logs in a folder."""
        if self._faulty is None:
            return
        print(report.table(self._faulty.outcomes), file=sys.stderr)
        print(diagnose.summary(self._faulty.scene), file=sys.stderr)
        folder = self.options.out / "demo-failure"
        diagnose.dump(self._faulty.scene, folder)
        print(f"demo: logs of everything: {folder}", file=sys.stderr)

    def clean_up(self) -> None:
        """Leave the machine as it was found; a second Ctrl-C does not break it off, and it is bounded."""
        with _uninterrupted():
            if self._faulty is not None:
                self._faulty.scene.job.close()
            if self.options.keep:
                self.progress.say("clean-up", f"kept: export KUBECONFIG={self.cluster.kubeconfig()}")
                return
            with contextlib.suppress(DemoError, ApiError):
                if self._keep_cluster:
                    self._remove_from_cluster()
                else:
                    self.cluster.down()

    def _remove_from_cluster(self) -> None:
        """From a cluster that stays: the job, its namespace, the operator."""
        if self._prepared is not None:
            with self.progress.stage("clean-up", "namespace and release removed"):
                if not self.cluster.existing:
                    self.cluster.storage("on")
                setting.drop_namespace(self.cluster, self._prepared.workspace.namespace)
                setting.uninstall(self.cluster, RELEASE)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
