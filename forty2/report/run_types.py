"""What reports show of a run: typed records, which `records` reads from the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field

HELD_OUT = "held_out"
"""The task that measures a run's own held-out rows."""
TRUTHFULQA = "truthfulqa"
"""The task that earlier releases recorded alone, without naming it."""


@dataclass(frozen=True, slots=True)
class ProvenanceRecord:
    """The origin of a run's results."""

    model: str
    model_sha256: str
    versions: dict[str, str]
    """Releases of the software, and the machine."""
    init_from: dict[str, str]
    """Folder and hash of the adapter that the run went on from, by what they are; empty: none."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of metrics.jsonl: a step, an evaluation or a warning."""

    phase: str
    step: int
    values: dict[str, float]
    warning: str | None


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """Rows of earlier data among those of a phase."""

    name: str
    """Phase or file that they are from."""
    rows: int
    of_rows: float
    """Share of the phase's rows."""
    of_tokens: float
    """Share of the phase's tokens."""


@dataclass(frozen=True, slots=True)
class GateRecord:
    """A bucket of eval prompts against its gate, at the end of a phase."""

    phase: str
    bucket: str
    least: float
    """Smallest share that must pass."""
    share: float
    low: float
    high: float
    """Ends of the share's 95% interval."""
    n: int
    passed: bool


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A finished phase."""

    name: str
    objective: str
    steps: int
    rows: int
    valid_rows: int | None
    """Number of validation rows; earlier releases did not record it."""
    exposures: float
    """Average uses of each row."""
    adapter_step: int
    """Step whose adapter the phase ended with; 0: the adapter that it began with."""
    dropped: list[str]
    """Origins of rows that are longer than max_length."""
    shortened: list[str]
    """Origins of rows whose prompt lost its beginning to max_length."""
    coverage: dict[str, float] = field(default_factory=dict)
    """Passes over the supervised tokens of its own rows and of each source that it replays; empty:
    an earlier release counted none."""
    replayed: list[ReplayRecord] = field(default_factory=list)
    """Sources that it replays."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about the use of its rows."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Questions on which the model is about equally confident."""

    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence in the first choice of MC1, against its accuracy."""

    error: float
    """Expected calibration error, 0 to 1."""
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float
    caution: str
    """What a reader must know beside it; "": nothing."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """The measurements of the base model, of a phase or of the fused model."""

    name: str
    mc1: float | None
    mc2: float | None
    mc1_stderr: float | None
    mc2_stderr: float | None
    facts_right: float | None
    """Share of plain facts answered right; earlier releases did not record it."""
    leak_rate: float | None
    preference: float | None
    margin: float | None
    perplexity: float | None
    kl: float | None
    calibration: Calibration | None
    tasks: dict[str, float]
    """Scores of further benchmarks, by metric."""
    held_out: dict[str, float]
    """Means over the run's held-out rows, by metric."""
    style: dict[str, Estimate]
    """Style of the replies to open questions, by metric; empty: not measured."""


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """The paired change of one metric, with its 95% interval."""

    difference: float
    low: float
    high: float
    p: float | None
    """p value, corrected for all metrics of the comparison."""
    verdict: str
    before: float | None = None
    after: float | None = None
    """The metric itself, of the base and of the stage; earlier releases recorded none."""
    n: int | None = None
    """Number of items that both answered; earlier releases recorded none."""


@dataclass(frozen=True, slots=True)
class CostRecord:
    """The change in something that the base could do, which counts as a cost if it is a loss."""

    change: ChangeRecord
    margin: float
    """Largest loss that counts as none, in the unit of the metric."""
    verdict: str
    """Answer to whether it is a cost, in the words of verdicts: "tax" is a loss."""


@dataclass(frozen=True, slots=True)
class TaskVerdict:
    """One benchmark's verdict, and the metrics that it is over."""

    metrics: list[str]
    verdict: str


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """A stage against the base model."""

    stage: str
    changes: dict[str, ChangeRecord]
    """Changes of the metrics that a benchmark's verdict is over, by metric."""
    tasks: dict[str, TaskVerdict]
    """Each benchmark's own verdict, by task; earlier releases recorded that of TruthfulQA alone."""
    categories: dict[str, float]
    """Mean change by category of questions."""
    costs: dict[str, CostRecord] = field(default_factory=dict)
    """Costs by metric; earlier releases recorded none."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A benchmark that a run measured."""

    label: str
    """Its name for a reader."""
    questions: str
    questions_sha256: str | None
    n: int | None


@dataclass(frozen=True, slots=True)
class ContaminationRecord:
    """Questions of the benchmarks that are in training rows."""

    questions: dict[str, int]
    """Number of questions in training rows, by task; a task that is missing was not searched for."""
    comparisons: list[ComparisonRecord]
    """The comparisons without those questions."""


@dataclass(frozen=True, slots=True)
class BucketRecord:
    """A bucket of eval prompts over the stages of a run."""

    name: str
    n: int
    shares: dict[str, float]
    """Share that passed at each stage."""
    best: str
    """The stage before the last at which most passed."""
    forgotten: int
    """Prompts that passed then and fail at the last stage."""


@dataclass(frozen=True, slots=True)
class SummaryRecord:
    """The outcome of a run that was measured."""

    verdict: str
    sentence: str
    """Benefit and cost of the last stage; empty: an earlier release judged the benefit alone."""
    margin: float | None
    questions: str
    questions_sha256: str | None
    n: int | None
    tasks: dict[str, TaskRecord]
    """Benchmarks of the recipe; earlier releases recorded TruthfulQA alone."""
    stages: list[StageRecord]
    comparisons: list[ComparisonRecord]
    contamination: ContaminationRecord | None
    buckets: list[BucketRecord]
    """Buckets of the phases' eval prompts; empty: none were measured."""


@dataclass(frozen=True, slots=True)
class QuantizedRecord:
    """The quantized copy of a fused model."""

    path: str
    bits: int
    cosine: float | None
    """None: no weight matrix is changed."""
    kl: float


@dataclass(frozen=True, slots=True)
class FusedRecord:
    """A fused model."""

    path: str
    parity_kl: float
    adapter_kl: float
    quantized: QuantizedRecord | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers of the base and of the last stage to one prompt."""

    prompt: str
    before: str
    after: str
    before_leaks: bool = False
    """True if it hedges where a plain fact was asked for."""
    after_leaks: bool = False
    between: tuple[tuple[str, str], ...] = ()
    """The stages between the two, each with its answer."""
    expected: str = ""
    """The answer of the held-out row, or what the eval prompt expects, in words; "": it has none, or it
    was not recorded."""


@dataclass(frozen=True, slots=True)
class EvalReply:
    """A stage's reply to an eval prompt."""

    prompt: str
    expected: str
    reply: str
    passed: bool
    broken: bool
    """True if its tags are broken; earlier releases did not record it."""
    tags: dict[str, bool]
    """Tags that it should hold, and whether it does; earlier releases recorded none."""
    match: str = ""
    """How it is compared with what is expected; "": an earlier release did not record it."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A question of TruthfulQA that one of base and last stage answered right, by MC1."""

    question: str
    category: str
    now_right: bool


@dataclass(frozen=True, slots=True)
class LintWarning:
    """A fault of a phase's rows that the lint warned of."""

    phase: str
    message: str
    rows: int
    """Number of rows with this fault; for a fault of the whole set, of rows looked at."""
    origins: list[str]
    """Origins of the first few rows."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time that a stage of the run took, over all starts of the run."""

    stage: str
    kind: str
    """Kind of work: read, measure, train or fuse."""
    phase: str | None
    """Name of the phase that it trained; None: it trained none."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder."""

    name: str
    started: str
    provenance: ProvenanceRecord
    recipe: str
    """Text of recipe.yaml."""
    phases: list[PhaseRecord]
    log: list[LogLine]
    summary: SummaryRecord | None
    """Outcome; None if the recipe measures nothing, or the run is not finished."""
    unread_phases: list[str]
    """Phases whose data could not be searched for the benchmark's questions."""
    fused: FusedRecord | None
    answers: list[Answer]
    """Answers to plain factual prompts."""
    own_answers: list[Answer]
    """Answers to the run's held-out prompts and eval prompts."""
    flips: list[Flip]
    times: list[StageTime]
    """Stages in the order of their first start; earlier releases recorded none."""
    lint_warnings: list[LintWarning]
    gates: list[GateRecord]
    """Gates of the finished phases."""
    eval_replies: dict[str, list[EvalReply]] = field(default_factory=dict)
    """Replies to the phases' eval prompts by stage, the base model first; empty: none were measured."""

    @property
    def stages(self) -> list[StageRecord]:
        """Stages that were measured, the base model first."""
        return self.summary.stages if self.summary is not None else []

    @property
    def comparisons(self) -> list[ComparisonRecord]:
        """Later stages against the base model."""
        return self.summary.comparisons if self.summary is not None else []

    @property
    def tasks(self) -> dict[str, TaskRecord]:
        """Benchmarks that were measured, by name."""
        return self.summary.tasks if self.summary is not None else {}
