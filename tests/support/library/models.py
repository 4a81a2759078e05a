"""Tiny models of every family, calibrated without any download, and the real default model, loaded once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from refusing import refused
from tiny_models import FAMILIES, VOCABULARY, WORDS, ModelFactory
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from intraslice.calibration.driver import CalibrationStats, calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.progress import ProgressOption
from intraslice.core.registry import ESTIMATORS
from intraslice.loading import LoadedModel, fingerprint, load_model
from intraslice.methods.registry import Plan, plan_by, slice_by
from intraslice.modeling.families import canonicalise

# Together: grouped and single key/value heads, all biases and none, heads rotated whole, in part and not at all,
# attention and MLP after and beside each other.
TELLING = ("llama-biased", "phi", "smollm3")


def _word_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class TinyCase:
    """One family's tiny model, calibrated. Shared by the session: do not change it."""

    name: str
    original: PreTrainedModel  # transformers' own class, untouched
    loaded: LoadedModel
    tokens: torch.Tensor  # (16, 48)
    stats: CalibrationStats

    @property
    def dense(self) -> PreTrainedModel:
        """The canonical model."""
        return self.loaded.model

    def plan(self, sparsity: float = 0.4, method: str = "intraslice", **config: Any) -> Plan:
        """A method's plan; in one shot, unless told otherwise."""
        return plan_by(method, self.dense, self.stats, SliceConfig(sparsity, **{"order": "one-shot"} | config))

    def cut(
        self,
        plan: Plan,
        method: str = "intraslice",
        training: torch.Tensor | None = None,
        progress: ProgressOption = False,
    ) -> PreTrainedModel:
        """The model of a method's plan."""
        return slice_by(method, self.dense, plan, self.stats, self.tokens, training, progress=progress)

    def sliced(self, sparsity: float = 0.4, method: str = "intraslice", **config: Any) -> PreTrainedModel:
        """The model of the plan of these settings."""
        return self.cut(self.plan(sparsity, method, **config), method)


def _loaded(model: PreTrainedModel, name: str = "tiny") -> LoadedModel:
    digest = fingerprint(model)
    canonicalise(model)
    return LoadedModel(model, _word_tokenizer(WORDS), name, "random weights", digest)


@pytest.fixture(scope="session")
def as_loaded() -> Callable[[PreTrainedModel], LoadedModel]:
    """Makes a canonical LoadedModel of a tiny transformers model, in place; token n is the word `wn`."""
    return _loaded


@pytest.fixture(scope="session")
def tiny_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyCase]:
    """Makes the calibrated case of one of `FAMILIES`, once a session."""
    made: dict[str, TinyCase] = {}

    def make(name: str) -> TinyCase:
        if name not in made:
            loaded = _loaded(FAMILIES[name](), name)
            tokens = torch.randint(3, VOCABULARY, (16, 48), generator=torch.Generator().manual_seed(7))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.mktemp("calibrations")))
                stats = calibrate(loaded, tokens, progress=False)
            made[name] = TinyCase(name, FAMILIES[name](), loaded, tokens, stats)
        return made[name]

    return make


@pytest.fixture(scope="session")
def case(tiny_case: Callable[[str], TinyCase]) -> TinyCase:
    """That of Llama with grouped heads, where one family is enough."""
    return tiny_case("llama-gqa")


@pytest.fixture(
    scope="session",
    params=[name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def family_case(request: pytest.FixtureRequest, tiny_case: Callable[[str], TinyCase]) -> TinyCase:
    """The telling families in turn; the others only with `-m slow`."""
    return tiny_case(request.param)


@pytest.fixture
def cross_module_case(family_case: TinyCase) -> TinyCase:
    """The case of each family whose residual stream may change its basis."""
    if family_case.name == "gemma3":
        pytest.skip("refused: norms after its modules; test_crossmodule.py has the refusal")
    return family_case


@pytest.fixture(scope="session", params=FAMILIES)
def every_family_case(request: pytest.FixtureRequest, tiny_case: Callable[[str], TinyCase]) -> TinyCase:
    """All families in turn."""
    return tiny_case(request.param)


@pytest.fixture(scope="session")
def tiny_llama_gqa() -> ModelFactory:
    """9 query heads on 3 key/value heads of dim 8, hidden size 54, tied embeddings."""
    return FAMILIES["llama-gqa"]


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[[Sequence[str]], PreTrainedTokenizerFast]:
    """Makes a tokenizer of the given words: one token a word, ids in their order after <pad>, <s>, </s>, <unk>."""
    return _word_tokenizer


@pytest.fixture(scope="session")
def all_bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, as many as the tiny models have: it encodes any text."""
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def default_model() -> LoadedModel:
    """SmolLM2-135M-Instruct, shared by the session: do not change it."""
    return load_model("default")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """What draws from torch's own generator draws the same, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is not there yet, for this test alone."""
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own_estimators() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = set(ESTIMATORS)
    yield
    for name in set(ESTIMATORS) - before:
        del ESTIMATORS[name]


@pytest.fixture
def folder(tmp_path: Path, tiny_llama_gqa: ModelFactory, word_tokenizer: Callable) -> Path:
    """A tiny Llama and its tokenizer in transformers format."""
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    word_tokenizer(WORDS).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Loads what cannot be loaded and returns the one line that says why."""
    return lambda name, **options: refused(load_model, str(name), **options)
