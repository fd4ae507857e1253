"""Public names of paravirt_mm: the one list of them, for type checkers and for the lazy loader."""

from ._version import __version__ as __version__
from .engine.answers import (
    Cost as Cost,
)
from .engine.answers import (
    EntryKind as EntryKind,
)
from .engine.answers import (
    EntryWrite as EntryWrite,
)
from .engine.answers import (
    Refusal as Refusal,
)
from .engine.answers import (
    Way as Way,
)
from .engine.boot import (
    Boot as Boot,
)
from .engine.boot import (
    Promise as Promise,
)
from .engine.memblock import (
    Memblock as Memblock,
)
from .engine.pages import (
    PageRun as PageRun,
)
from .engine.pages import (
    Source as Source,
)
from .engine.pages import (
    TablePages as TablePages,
)
from .engine.pages import (
    deal as deal,
)
from .engine.pages import (
    page_count as page_count,
)
from .engine.split import (
    Piece as Piece,
)
from .engine.steps import (
    ActivateRoot as ActivateRoot,
)
from .engine.steps import (
    AttachTables as AttachTables,
)
from .engine.steps import (
    HandOver as HandOver,
)
from .engine.steps import (
    HandOverTables as HandOverTables,
)
from .engine.steps import (
    Map as Map,
)
from .engine.steps import (
    NewRoot as NewRoot,
)
from .engine.steps import (
    Promote as Promote,
)
from .engine.steps import (
    Step as Step,
)
from .engine.steps import (
    StepResult as StepResult,
)
from .engine.steps import (
    TableDemand as TableDemand,
)
from .engine.tables import (
    Batch as Batch,
)
from .engine.tables import (
    MapPlan as MapPlan,
)
from .engine.tables import (
    TableRun as TableRun,
)
from .engine.tables import (
    Tree as Tree,
)
from .engine.trace import EntriesWritten as EntriesWritten
from .engine.trace import (
    Event as Event,
)
from .engine.trace import MadeReadonly as MadeReadonly
from .engine.trace import MadeWritable as MadeWritable
from .engine.trace import OperationRejected as OperationRejected
from .engine.trace import Panicked as Panicked
from .engine.trace import RangeMapped as RangeMapped
from .engine.trace import RangeSplit as RangeSplit
from .engine.trace import RootActivated as RootActivated
from .engine.trace import RunFinished as RunFinished
from .engine.trace import RunStarted as RunStarted
from .engine.trace import StepStarted as StepStarted
from .engine.trace import SurplusReleased as SurplusReleased
from .engine.trace import TablesAllocated as TablesAllocated
from .engine.trace import TablesAttached as TablesAttached
from .engine.trace import TablesPinned as TablesPinned
from .engine.trace import TablesReserved as TablesReserved
from .engine.trace import (
    Trace as Trace,
)
from .errors import ExitCode as ExitCode
from .errors import (
    InputError as InputError,
)
from .errors import (
    KernelPanic as KernelPanic,
)
from .errors import (
    ParavirtMmError as ParavirtMmError,
)
from .errors import (
    PluginError as PluginError,
)
from .errors import (
    Rejected as Rejected,
)
from .errors import (
    SpecError as SpecError,
)
from .hookspecs import (
    API_VERSION as API_VERSION,
)
from .hookspecs import (
    hookimpl as hookimpl,
)
from .machine.e820 import (
    E820Entry as E820Entry,
)
from .machine.e820 import (
    E820Type as E820Type,
)
from .machine.e820 import (
    MemoryMap as MemoryMap,
)
from .machine.model import (
    BootState as BootState,
)
from .machine.model import (
    CpuFeatures as CpuFeatures,
)
from .machine.model import (
    KernelImage as KernelImage,
)
from .machine.model import (
    Machine as Machine,
)
from .machine.model import (
    Provenance as Provenance,
)
from .machine.model import (
    Span as Span,
)
from .machine.paging import GIB as GIB
from .machine.paging import ISA_END as ISA_END
from .machine.paging import MIB as MIB
from .machine.paging import (
    MODES as MODES,
)
from .machine.paging import PAGE_SHIFT as PAGE_SHIFT
from .machine.paging import PAGE_SIZE as PAGE_SIZE
from .machine.paging import (
    PagingMode as PagingMode,
)
from .machine.ranges import (
    RangeMap as RangeMap,
)
from .machine.ranges import (
    RangeSet as RangeSet,
)
from .machine.ranges import (
    align_down as align_down,
)
from .machine.ranges import (
    align_up as align_up,
)
from .machine.release import Version as Version
from .machine.release import dotted as dotted
from .machine.release import parse_release as parse_release
from .options import (
    PluginSpec as PluginSpec,
)
from .registry import (
    Registry as Registry,
)
from .report.comparison import DEFAULT_ALLOCATORS as DEFAULT_ALLOCATORS
from .report.comparison import DEFAULT_BACKENDS as DEFAULT_BACKENDS
from .report.comparison import Row as Row
from .report.comparison import compare as compare
from .report.comparison import machine_title as machine_title
from .report.comparison import summary as summary
from .report.comparison import tables as tables
from .scenario import (
    Outcome as Outcome,
)
from .scenario import (
    Run as Run,
)
from .scenario import (
    Scenario as Scenario,
)
from .scenario import (
    Verdict as Verdict,
)
from .scenario import (
    default_registry as default_registry,
)
from .sources import (
    bundled as bundled,
)
from .sources import (
    bundled_machines as bundled_machines,
)
from .sources import (
    load as load,
)
from .sources import (
    load_all as load_all,
)
from .sources.bootlog import DomainKernel as DomainKernel
from .sources.bootlog import Fact as Fact
from .sources.bootlog import Place as Place
from .sources.bootlog import of_kind as of_kind
from .verify.invariants import (
    Finding as Finding,
)
from .verify.linux.log import LineVerdict as LineVerdict
from .verify.linux.log import LogLine as LogLine
