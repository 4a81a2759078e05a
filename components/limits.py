"""Every limit and waiting time of the page, and what a client reads of an error.

A page is hosted where untrusted clients use it: on a Space, or where `INTRASLICE_HOSTED=1` says so. There limits are
tighter, and no file of the server is read or named. Those of class `Limit` can be set in the environment.
"""

import os
import re
from dataclasses import dataclass

from intraslice.core.cache import MAX_BYTES_VARIABLE, MAX_CACHE_BYTES
from intraslice.core.checks import from_environment, quoted
from intraslice.core.config import CalibrationConfig
from intraslice.core.errors import Message, UserError

from .i18n.language import LazyString, translate

MAX_WORDS = 600  # characters of an error
HOPS_VARIABLE = "INTRASLICE_TRUSTED_HOPS"
MODELS_VARIABLE = "INTRASLICE_MODELS"  # the models that the owner lists, separated by blanks
FRAMES_VARIABLE = "INTRASLICE_FRAME_ANCESTORS"  # sites that may embed the page, as in the header; by default any
KEPT_FREE = 5  # one of so many places is kept for network addresses that have none


@dataclass
class Limit:
    """A bound, `INTRASLICE_MAX_<name>` in the environment; without that it is what suits a desktop or a hosted page."""

    what: str
    desktop: int
    hosted: int
    why: str
    former_name: str = ""  # whose variable is read as well
    name: str = ""  # as this module has it

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"INTRASLICE_MAX_{self.name}"

    @property
    def value(self) -> int:
        """The bound that holds here. Raises UserError where the environment has no whole number above 0."""
        value = self.hosted if hosted() else self.desktop
        for name in filter(None, (self.former_name, self.name)):
            value = from_environment(f"INTRASLICE_MAX_{name}", value, "a whole number above 0", 1)
        return value


SEQUENCES = Limit("calibration sequences", 1_024, 256, "each takes a forward and a backward pass")
LENGTH = Limit("tokens of a sequence or window", 4_096, 2_048, "memory grows with it: logits, attention")
CALIBRATION_TOKENS = Limit(
    "calibration tokens, (sequences + samples) x length",
    2**20,
    CalibrationConfig.thorough().tokens,
    "the thorough budget; 2^16 take 8 minutes on two cores",
)
NEW_TOKENS = Limit("tokens of an answer", 2_048, 512, "each is a step of up to five models")
PROMPT = Limit("characters of a prompt", 100_000, 16_000, "the whole prompt is tokenised before the prefill")
PASSAGE = Limit("characters of a passage", 8_000, 8_000, "each of its tokens is an element of the page")
LOCKED = Limit("characters of the manual ratios", 20_000, 10_000, "parsed at every move of the slider")
NAME = Limit("characters of a name: model, text, estimator", 1_000, 200, "part of every cache key")
LINK = Limit("characters of a link", 60_000, 20_000, "a longer one is ignored")
TEMPERATURE = Limit("temperature of an answer", 5, 5, "above that it is noise")
SWEEP = Limit("points of a sweep", 500, 100, "each is a model to slice and measure")
REQUEST = Limit("bytes of a call", 4 * 2**20, 2**20, "it is read completely before it is parsed")
UPLOAD = Limit("bytes of an uploaded file", 2**29, 20 * 2**20, "it is stored on disk, and read as text")
UPLOADS = Limit("bytes of disk of all uploads", 2**40, 2**31, "the oldest are deleted first")
UPLOAD_SECONDS = Limit("seconds that an upload is kept", 86_400, 3_600, "the disk is shared")
EXPORTS = Limit("bytes of disk of all exported files", 2**36, 2**31, "each is kept for ten minutes")
DEVICE_FILES = Limit("bytes of disk of all models for users' devices", 2**36, 2**33, "the oldest are deleted first")
DOWNLOADS = Limit("downloads to users' devices at once", 200, 200, "each keeps a connection")
JOBS = Limit("jobs that run or wait", 240, 240, "each holds two threads; a class of 60 at one address has up to 190")
CLIENT_JOBS = Limit("jobs of one client", 12, 12, "an open page has up to eleven", "VISITOR_JOBS")
JOB_SECONDS = Limit("seconds of a job's own steps", 86_400, 1_800, "others must get their turns")
CALLS = Limit("calls that wait or run", 1_000, 500, "each keeps its inputs and pending messages")
CLIENT_CALLS = Limit("calls of one client", 40, 40, "a page at work has up to twenty", "VISITOR_CALLS")
UNREAD_SECONDS = Limit("seconds until unread results are dropped", 30, 30, "their client has probably left")
STUCK_SECONDS = Limit("seconds of a step, or to read a text", 600, 120, "`/healthz` then answers 503")
PAGES = Limit("open pages whose state is kept", 1_000, 400, "each takes 95 kB")
ROOMS = Limit("live classes that are kept", 200, 200, "each for 24 hours, on the disk")
ADDRESS_ROOMS = Limit("live classes of one network address", 10, 10, "others need places, too")
STUDENTS = Limit("students of a class", 200, 200, "each polls every 1.5 seconds")
JOINS = Limit("students who join a class from one address at once", 80, 80, "then one every five seconds")
ROOM_ANSWERS = Limit("predictions of a class, replaced ones included", 20_000, 20_000, "all are in memory")
WRONG_CODES = Limit(
    "wrong class codes of one network address in ten minutes", 30, 30, "so that codes cannot be guessed"
)
CACHE_BYTES = Limit("bytes of the cache folder", MAX_CACHE_BYTES, 5 * 10**9, "the least recently used are deleted")
HUB_BYTES = Limit(
    "bytes of models that clients have fetched from the Hub",
    2**40,
    2**34,
    "the least recently used are deleted before another is fetched",
)
MEMORY = Limit("bytes of memory of this process", 2**40, 2**40, "set it lower where other processes need memory")
CACHE_SHARE = Limit("per cent of the free memory for all caches", 60, 40, "the rest is for the work")
UNUSED_SECONDS = Limit("seconds that unused entries stay in memory", 3_600, 600, "frees memory for other clients")

# Turns of jobs (`jobs/round_robin.py`)
TURN_SECONDS = 0.25
FEW = 4  # addresses, or clients of one, that take short turns; where more wait, turns are long
LONG_TURN_SECONDS = 10.0  # a slice and its first number, on a busy machine too
SHARE = 8  # seconds of the jobs that come first, to one of the others
BEGINNING_SECONDS = 0.1  # of a new job, which have a queue of their own: what is cached, the first token of an answer
REMEMBERED_TURNS = 10_000

# Jobs, and what their clients see of them
NOTICED_SECONDS = 0.5  # of a step that is logged, and told by `/healthz`, since others wait for it
IDLE_THREAD_SECONDS = 60.0  # after which a thread without work ends
RETRY_SECONDS = 0.5  # between two attempts to get a place
REST_SECONDS = 0.15  # without a move, after which the slider may be about to be released
STATUS_SECONDS = 0.5  # between two statuses of a job: each costs the page some milliseconds of what it reports on
QUIET_SECONDS = 1.0  # without an event, after which a job that waits says so
REMINDER_SECONDS = 4.0  # between two statuses that say so: many may wait
LINE_SECONDS = 0.5  # for which the order of jobs is used for all who ask
MAX_READERS = 2  # jobs that read an uploaded text at once
MAX_WRITERS = 2  # jobs that write a model at once
MAX_SLICED_ANSWERS = 4  # answers of sliced models at once

# Answers
ANSWER_UPDATE_SECONDS = 0.15  # between two updates of growing answers; each takes a browser about 50 ms
SLICING_SECONDS = 0.4  # of slicing between two tokens of the columns that already answer
LONG_WAIT_SECONDS = 10  # from which a wait offers the user's own device
MAX_PASSAGE_TOKENS = 512  # each token is an element of the page

# Calls
MAX_WAITING_CALLS = 300  # that wait for jobs, each in a thread
MAX_THREADS = 360  # of calls: the slider needs some, too
CALL_PAUSE_SECONDS = 0.02  # between the beginnings of two calls of an address
MAX_CALL_PAUSE_SECONDS = 2.0  # a class of a hundred may be behind one address
MAX_PACED_ADDRESSES = 1_000  # then those are forgotten whose calls have all begun
SESSION_SECONDS = 300.0  # without a reader, after which a session's messages are forgotten
TIDYING_SECONDS = 1.0  # between two rounds of forgetting
GRACE_SECONDS = 2.0  # in which a session may read or call again before its calls end
MAX_SESSION_NAME = 100  # characters, of which gradio and the scheduler keep thousands
QUEUE_POLL_SECONDS = 0.01  # between two checks for calls that wait; gradio checks a thousand times a second
STREAM_IDLE_SECONDS = 1.0  # without a call, after which a stream is closed
STREAM_CLOSING_SECONDS = 5.0  # that the page has to close it, during which its calls wait
PAGE_BYTES_PER_SECOND = 10**8  # to one address: a thousand pages would fill the system's buffers for seconds
MAX_LAYER = 10_000

# Files
UPLOAD_ENVELOPE = 64 * 2**10  # bytes around the files of an upload
MAX_UPLOAD_FILES = 10  # the page sends one
DOWNLOAD_SECONDS = 600.0  # that a finished file is kept
DEVICE_FILE_SECONDS = 120.0  # that a model for users' devices is kept at least after it was asked for
DEVICE_BYTES_PER_SECOND = 125e6  # to all devices, a connection of a gigabit: leaves the cores to the slider
STALLED_SECONDS = 60.0  # that a download may take for a part
SLOW_SECONDS = 5.0  # for a part, after which a client gives way to others of its address
MAX_ENGINE_BYTES = 40 * 10**6  # of the WebAssembly package and its files together
ENGINE_SECONDS = 300  # for fetching them

# Classes
ROOM_SECONDS = 24 * 3600.0
EMPTY_ROOM_SECONDS = 900  # after which a room without students gives way to a new one, where there are too many
EXPIRY_SECONDS = 60.0  # between two checks for expired rooms
JOIN_SECONDS = 5.0  # between two new students of an address from which `JOINS` have joined at once
WRONG_CODE_SECONDS = 600.0  # for which wrong codes are counted
MAX_ROOM_REQUEST = 4 * 2**10  # bytes
QR_LINK = 1_000  # characters

LIMITS = {name: limit for name, limit in list(globals().items()) if isinstance(limit, Limit)}
for _name, _limit in LIMITS.items():
    _limit.name = _name


def hosted() -> bool:
    """Whether untrusted clients use this page."""
    return bool(os.environ.get("SPACE_ID")) or os.environ.get("INTRASLICE_HOSTED", "") not in ("", "0")


def has_room(limit: Limit, taken: int, has_some: bool) -> bool:
    """Whether one more is within a limit, of which a part is kept for addresses that do not have some of `taken`."""
    return taken < limit.value - (limit.value // KEPT_FREE if has_some else 0)


def trusted_hops() -> int:
    """The number of proxies before the page: 1 on a Space, else 0, or what the environment says, else UserError."""
    return from_environment(HOPS_VARIABLE, int(bool(os.environ.get("SPACE_ID"))), "a whole number, 0 or more")


def frame_headers() -> dict[str, str]:
    """The header with the sites that may embed the page; none where any may. Raises UserError for no list."""
    sites = os.environ.get(FRAMES_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-+.-:<-~ -]*", sites):  # no comma or semicolon, which would end the list
        expected = "sites separated by spaces, such as 'self' https://example.org"
        raise UserError(
            "{name} must be {expected}, got {value}", name=FRAMES_VARIABLE, expected=expected, value=quoted(sites)
        )
    return {"content-security-policy": f"frame-ancestors {sites}"} if sites else {}


def require() -> None:
    """Raises UserError, before the page opens, where the environment has a limit that is none."""
    trusted_hops()
    frame_headers()
    for limit in LIMITS.values():
        limit.value  # noqa: B018


def limit_cache() -> None:
    """Let the cache folder hold at most `CACHE_BYTES`, in this process and those that it starts."""
    os.environ[MAX_BYTES_VARIABLE] = str(CACHE_BYTES.value)


def error_text(problem: object) -> str:
    """What a client reads of an error: no more than fits, and where the page is hosted no folder of the server.

    Models that the owner lists keep their folders. It is a sentence, unlike Python's errors; a lazy string remains one.
    """
    text = str(problem) or type(problem).__name__
    is_lazy = isinstance(text, (LazyString, Message))
    return LazyString(lambda: _bounded(translate(text))) if is_lazy else _bounded(text)


def _bounded(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()  # an answer with an unpaired surrogate cannot be sent
    if hosted():
        listed = "".join(rf"(?!{re.escape(name)}(?![\w/]))" for name in os.environ.get(MODELS_VARIABLE, "").split())
        text = re.sub(rf"{listed}(?:{_FOLDERS})", "", text, flags=re.VERBOSE)
    text = _FIRST_WORD.sub(lambda word: word[0].capitalize(), text)
    if text[-1:].isalnum() or text.endswith((")", "]", "'", '"', "%")):
        text += "."
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]} …"


# The folders of an absolute path; in quotes they may have blanks. An address (https://...) is none.
_FOLDERS = r"""(?<=['"`])~?/(?:[^'"`\n]*/)?  |  (?<![\w:/.~])~?/(?=\S)(?:[^\s/'"`]+/)*  |  file:///(?:[^\s/'"`]+/)*"""
_FIRST_WORD = re.compile(r"^[a-z]+(?=[ '])")  # a word of English, and no name of a file or a model
