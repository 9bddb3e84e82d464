"""A recipe: everything that decides what a training run does, in one TOML file.

docs/training.md explains the choices; the keys are documented here, where they stand.
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field

from streamdet import config
from streamdet.bundle import FORMAT, Audio, Calibration, Decision, FileEntry, Manifest, Model
from streamdet.config import Section
from streamdet.errors import ConfigError, MissingError
from streamdet_training.data import Format

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]  # from, to
ShareRange = tuple[Share, Share]
Positive = Annotated[float, Field(gt=0)]
PositiveRange = tuple[Positive, Positive]
Rank = Annotated[int, Field(ge=1)]
Slice = Annotated[str, Field(pattern=r"^-?\d*:-?\d*$")]

CodecName = Literal[
    "mulaw", "alaw", "g726", "g723", "gsm", "amr", "opus_nb", "opus_wb", "g722", "msbc", "vox", "mp3", "aac", "vorbis"
]
NoiseName = Literal["coloured", "hum", "babble", "clicks"]

SHIPPED: Final = Path(str(files("streamdet_training.recipes")))


class Spectral(Section):
    """Log band energies and a small 2-D network in place of wav2vec2's convolutions over raw audio, at 16 kHz."""

    bands: Annotated[int, Field(ge=8, le=200)] = 80
    """Bands of the spectrum."""
    scale: Literal["mel", "linear"] = "mel"
    """How they are spaced."""
    from_hz: Annotated[float, Field(ge=0)] = 60.0
    """Lower edge of the lowest band (Hz)."""
    to_hz: Annotated[float, Field(gt=0, le=8000)] = 7800.0
    """Upper edge of the highest (Hz)."""
    range_db: Annotated[float, Field(gt=0)] = 60.0
    """What lies further below a window's loudest band counts as silence (dB)."""
    channels: Annotated[tuple[int, ...], Field(min_length=2, max_length=4)] = (16, 32, 64, 64)
    """Widths of the 2-D network's layers; each halves the bands, the second halves time."""
    mask_bands: Annotated[int, Field(ge=0)] = 12
    """In training, two stretches of up to this many bands are silenced in each window."""


class Backbone(Section):
    """Where the wav2vec2 comes from: exactly one of `source`, `recipe` and `config`."""

    source: str | None = None
    """A model id on the Hugging Face hub, or a folder written by `save_pretrained`."""
    recipe: str | None = None
    """Another recipe: it is trained first, and its backbone is the start of this one."""
    config: dict[str, Any] | None = None
    """Fields of transformers' Wav2Vec2Config: random weights, nothing is downloaded."""
    spectral: Spectral | None = None
    """With `config`: hear spectra instead of raw audio."""
    layers: Annotated[int, Field(ge=0)] = 0
    """Transformer layers kept, from below; 0 keeps all. Low layers hold most of what tells spoof from bona fide."""
    layer_sum: bool = False
    """The head hears a learnt weighted sum over the transformer's input and every layer, not the last layer alone."""


class Lora(Section):
    """Low-rank adaptation: W x + (alpha / rank) B A x with A `(rank, in)` and B `(out, rank)`."""

    rank: Rank = 16
    """Rank of the update."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Dropout in front of A."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers of the transformer that get one: q_proj, k_proj, v_proj, out_proj, intermediate_dense, ..."""
    layers: tuple[int | Slice, ...] = ()
    """Transformer layers that get one: numbers from 0, or slices (":6" the first six, "-6:" the last); none: all."""
    rank_pattern: dict[str, Rank] = Field(default={})
    """Another rank for some matrices, by what their full name ends with: plain text or a regular expression."""
    alpha_pattern: dict[str, Positive] = Field(default={})
    """Another alpha for some matrices, by the same names."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Learn the length of each row of W beside its direction (DoRA, Liu et al. 2024): one more number a row."""
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    """A random and B zero (kaiming, gaussian), or both the largest singular parts of W, which loses them (pissa)."""


class Head(Section):
    """From frames of features to one score."""

    kind: Literal["pool", "mean", "nested"] = "pool"
    """pool: attentive statistics over time; mean: the mean; nested: a slim Nes2Net-X. Then a linear layer."""
    hidden: Annotated[int, Field(ge=1)] = 64
    """Width of the attention (pool), and of the embedding under a loss on cosines."""
    dropout: Share = 0.1
    """Dropout in front of the linear layer."""


class Window(Section):
    """What the daemon will score at once; it goes into the bundle."""

    kind: Literal["window", "block"] = "window"
    """window: each window is encoded whole; block: each hop once, and a window pools over its hops."""
    rate_hz: int = 16000
    """Samples a second that the backbone expects."""
    window_s: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Audio in one window (s)."""
    hop_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Advance from window to window (s)."""
    left_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    """Of kind block: audio before a hop that is heard with it, and whose frames are not pooled (s)."""
    min_speech_s: Annotated[float, Field(ge=0)] = 0.5
    """A window with less speech is not scored (s)."""
    normalise: bool = False
    """Zero mean and unit variance for each window (or block), inside the model, as XLS-R was pre-trained."""

    @property
    def past_s(self) -> float:
        """Audio before a window that its score hears (s)."""
        return self.left_s if self.kind == "block" else 0.0


class Data(Section):
    """What to learn from."""

    format: Format = "csv"
    """What a plain path is: csv, a manifest with the columns path, label, split, or the name of a corpus's layout."""
    path: Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)] = ()
    """Manifest or folder of a corpus, or a list of them; FORMAT:PATH says what one is. `--data` goes before it."""
    allow_overlap: tuple[Annotated[str, Field(pattern="^(speaker|system):.")], ...] = ()
    """Who may be in train and in dev: `speaker:NAME` and `system:NAME`; a `*` at the end stands for any ending."""
    balance: Share = 0.5
    """Systems (and sources, and speakers) of n clips are drawn as n to the power 1 - balance; 0: by clips alone."""
    at_most: dict[str, Share] = Field(default={})
    """Greatest share of its class that systems or sources get whose name begins like a key: `{"griffin" = 0.1}`."""
    cache: Path | None = None
    """Folder that keeps decoded audio from run to run; without one, each worker keeps what it can in memory."""


class Augment(Section):
    """How often each change is made to a training clip, and how strongly. Changes come in the order of the keys."""

    speed: Share = 0.0
    """Share of clips played faster or slower; pitch goes with it."""
    speed_by: PositiveRange = (0.94, 1.06)
    """How much faster, from and to; 1 changes nothing."""
    room: Share = 0.0
    """Share of clips heard in a made-up room: echoes of its walls, then a tail whose high notes die first."""
    room_rt60_s: PositiveRange = (0.1, 0.5)
    """Its reverberation time (s), from and to."""
    noise: Share = 0.0
    """Share of clips with noise of one kind."""
    noise_snr_db: Range = (5.0, 45.0)
    """Its signal to noise ratio (dB), from and to."""
    noise_kinds: Annotated[tuple[NoiseName, ...], Field(min_length=1)] = get_args(NoiseName)
    """Kinds to draw from: white to brown noise, mains hum, made-up talkers, clicks; also with repeated names."""
    noise_folder: Path | None = None
    """Recordings, in subfolders too; where such a folder is given, half of the noises come from it."""
    rawboost: Share = 0.0
    """Share of clips distorted by RawBoost."""
    rawboost_algorithms: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (3, 5)
    """Numbers to draw from, 1 to 8 as published. The field uses 5 for calls and 3 for media."""
    equaliser: Share = 0.0
    """Share of clips with a spectral tilt and one broad peak or dip."""
    handset: Share = 0.0
    """Share of clips through a telephone's microphone: about 300 to 3400 Hz, rising, with a resonance."""
    clipping: Share = 0.0
    """Share of clips that are overdriven, cut off hard or bent softly."""
    clipping_share: ShareRange = (0.001, 0.05)
    """Share of the samples of such a clip that reach the limit, from and to."""
    resampling: Share = 0.0
    """Share of clips that pass through another rate, by a converter that is anything from good to poor."""
    resampling_hz: Annotated[tuple[Annotated[int, Field(ge=4000)], ...], Field(min_length=1)] = (
        8000,
        11025,
        12000,
        22050,
    )
    """Rates to draw from (Hz)."""
    band_limit: Share = 0.0
    """Share of clips that lose what lies above `band_limit_hz`."""
    band_limit_hz: Range = (3300.0, 7500.0)
    """The upper limit (Hz), from and to."""
    gain_dbfs: Range = (-35.0, -12.0)
    """Every clip is brought to a level in this range (RMS, dB of full scale)."""
    codec: Share = 0.0
    """Share of clips that are coded and decoded by one of `codecs`, at a bit rate drawn from those it is used at."""
    codecs: Annotated[tuple[CodecName, ...], Field(min_length=1)] = get_args(CodecName)
    """Codecs to draw from, by name; a name given twice is drawn twice as often."""
    tandem: Share = 0.0
    """Share of coded clips that go through a second one, as from a mobile to a telephone line."""
    packet_loss: Share = 0.0
    """Share of clips that lose frames of 10 to 30 ms, in bursts, and conceal them as receivers do."""
    packet_loss_share: ShareRange = (0.005, 0.15)
    """Share of the frames of such a clip that are lost, from and to."""
    jitter: Share = 0.0
    """Share of clips that pass through a jitter buffer, which repeats and drops pitch periods."""
    mask_frames: Share = 0.0
    """Share of feature frames that are masked in spans of 10, inside the network (SpecAugment)."""
    mask_features: Share = 0.0
    """Share of feature channels that are masked in spans of 10."""


class Loss(Section):
    """What training makes small. oc_softmax and am_softmax end the head in cosines instead of a plain linear layer."""

    kind: Literal["cross_entropy", "focal", "oc_softmax", "am_softmax"] = "cross_entropy"
    """cross_entropy; focal: less of what is told well already; oc_softmax: one class; am_softmax: with a margin."""
    bona_fide_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of bona fide clips; spoof has 1 minus it. Batches are balanced, so 0.5 favours neither."""
    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Of focal: (1 - p) to this power."""
    scale: Annotated[float, Field(gt=0)] = 20.0
    """Of oc_softmax and am_softmax: what cosines are multiplied by."""
    margin_bona_fide: Annotated[float, Field(ge=-1, le=1)] = 0.9
    """Of oc_softmax: bona fide is drawn above this cosine."""
    margin_spoof: Annotated[float, Field(ge=-1, le=1)] = 0.2
    """Of oc_softmax: spoof is pushed below this cosine."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.35
    """Of am_softmax: by how much the true class's cosine must be larger."""


class Train(Section):
    """The loop."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Updates of the weights."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Clips a step on each device."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate; it rises over `warmup` steps and falls to zero along a cosine."""
    warmup: Annotated[int, Field(ge=0)] = 100
    """Steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""
    label_smoothing: Share = 0.0
    """Targets are this far from 0 and 1, halved; for loss.kind cross_entropy."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients longer than this are shortened to it."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the weights' moving average a step; 0 keeps the last weights instead."""
    average_best: Annotated[int, Field(ge=1, le=20)] = 1
    """Checkpoints, the best ones, whose weights' mean is what the run leaves."""
    crop_s: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 2.0, 3.0, 4.0)
    """A batch takes one of these lengths (s)."""
    fill: Share = 0.5
    """Share of clips cut to a length of their own, from `shortest_s` up to the batch's, and repeated until that."""
    shortest_s: Annotated[float, Field(gt=0)] = 0.5
    """The shortest of these cuts (s)."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision, as accelerate names it."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that read and augment clips."""
    check_every: Annotated[int, Field(ge=1)] = 250
    """Steps between checkpoints; each is measured on dev, and the best one is kept."""
    select: Literal["eer", "min_cllr"] = "eer"
    """What is lowest on dev at the best checkpoint; min_cllr moves less by chance where dev is small."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Checkpoints in a row that are no better than an earlier one before training stops; 0 never stops early."""
    dev_clips: Annotated[int, Field(ge=0)] = 0
    """Clips of dev to measure on, half of either class, the same for every seed; 0 takes all."""


class Recipe(Section):
    """All of it."""

    name: str
    """Of the run, and of the bundle that comes of it."""
    mode: Literal["lora", "full", "head"] = "lora"
    """lora trains adapters and head; full trains every weight; head trains the head alone, on a frozen backbone."""
    seed: int = 1
    """Of weights, crops and augmentation."""
    backbone: Backbone
    lora: Lora = Lora()
    head: Head = Head()
    window: Window = Window()
    data: Data = Data()
    augment: Augment = Augment()
    loss: Loss = Loss()
    train: Train = Train()

    def draft(self) -> Manifest:
        """Return the manifest of an uncalibrated bundle: what windows to cut, with LLR = CM score."""
        window = self.window
        audio = Audio(
            rate_hz=window.rate_hz,
            window_samples=round(window.window_s * window.rate_hz),
            hop_samples=round(window.hop_s * window.rate_hz),
        )
        model = Model(kind="window")
        files = [model.file]
        if window.kind == "block":
            left_samples = round(window.left_s * window.rate_hz)
            model = Model(kind="block", output="sums", head="head.onnx", left_samples=left_samples)
            files.append("head.onnx")
        return Manifest(
            format=FORMAT,
            name=self.name,
            created="",
            audio=audio,
            model=model,
            calibration=Calibration(),
            decision=Decision(min_speech_s=window.min_speech_s),
            provenance={},
            files=dict.fromkeys(files, FileEntry("", 0)),
        )


def load(name: str | Path) -> Recipe:
    """Read a recipe: a file, or the name of one that ships with the package.

    Raises:
        MissingError: neither exists, or the folder of noises that it names does not.
        ConfigError: it is not a recipe.
    """
    path = Path(name)
    if not path.is_file():
        shipped = sorted(file.name for file in SHIPPED.glob("*.toml"))
        if path.name != str(name) or path.name not in shipped:
            raise MissingError.of("recipe", str(name), f"a file, or one of {', '.join(shipped)}")
        path = SHIPPED / path.name
    recipe = config.validated(Recipe, config.read_toml(path))
    origins = [key for key in ("source", "recipe", "config") if getattr(recipe.backbone, key) is not None]
    if len(origins) != 1:
        raise ConfigError.of("backbone", origins, "exactly one of source, recipe and config")
    if recipe.backbone.spectral is not None and (origins != ["config"] or recipe.window.rate_hz != 16000):
        raise ConfigError.of("backbone.spectral", origins, "backbone.config beside it, and window.rate_hz = 16000")
    folder = recipe.augment.noise_folder
    if folder is not None and not folder.is_dir():
        raise MissingError.of("augment.noise_folder", str(folder), "a folder that exists")
    return recipe
