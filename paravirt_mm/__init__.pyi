"""Public names of paravirt_mm: the one list of them, for type checkers and for the lazy loader."""

from ._version import __version__ as __version__
from .about import (
    CONFIGURATION as CONFIGURATION,
    ERA as ERA,
    Choice as Choice,
    DefaultSpec as DefaultSpec,
    OpenQuestion as OpenQuestion,
)
from .cli.reading import reading as reading, reading_each as reading_each
from .comparison import Row as Row, compare as compare
from .engine.answers import (
    Cost as Cost,
    EntryKind as EntryKind,
    EntryWrite as EntryWrite,
    Refusal as Refusal,
    Way as Way,
)
from .engine.boot import (
    Boot as Boot,
    Promise as Promise,
)
from .engine.ledger import LedgerView as LedgerView
from .engine.memblock import MemblockView as MemblockView
from .engine.pages import (
    PageRun as PageRun,
    Source as Source,
    TablePages as TablePages,
    deal as deal,
    first_pages as first_pages,
    page_count as page_count,
)
from .engine.panic import KernelPanic as KernelPanic
from .engine.realmode import with_trampoline as with_trampoline
from .engine.recorded import (
    KernelFile as KernelFile,
    RecordedBoot as RecordedBoot,
    RecordedStep as RecordedStep,
)
from .engine.split import (
    Piece as Piece,
    tables_to_map as tables_to_map,
)
from .engine.steps import (
    ActivateRoot as ActivateRoot,
    AttachTables as AttachTables,
    HandOver as HandOver,
    HandOverTables as HandOverTables,
    Map as Map,
    NewRoot as NewRoot,
    Promote as Promote,
    Step as Step,
    StepResult as StepResult,
    TableDemand as TableDemand,
)
from .engine.tables import (
    Batch as Batch,
    EntryCount as EntryCount,
    MapPlan as MapPlan,
    TableRun as TableRun,
    TreeView as TreeView,
)
from .engine.trace import (
    EntriesWritten as EntriesWritten,
    Event as Event,
    MadeReadonly as MadeReadonly,
    MadeWritable as MadeWritable,
    MemoryTaken as MemoryTaken,
    OperationRejected as OperationRejected,
    PagesTaken as PagesTaken,
    Panicked as Panicked,
    RangeMapped as RangeMapped,
    RangeSplit as RangeSplit,
    RootActivated as RootActivated,
    RunFinished as RunFinished,
    RunStarted as RunStarted,
    StepStarted as StepStarted,
    SurplusReleased as SurplusReleased,
    TablesAllocated as TablesAllocated,
    TablesAttached as TablesAttached,
    TablesPinned as TablesPinned,
    TablesReserved as TablesReserved,
    Trace as Trace,
)
from .errors import (
    ExitCode as ExitCode,
    InputError as InputError,
    ParavirtMmError as ParavirtMmError,
    PluginError as PluginError,
    Rejected as Rejected,
    SpecError as SpecError,
)
from .evidence import (
    EVIDENCE_FILE as EVIDENCE_FILE,
    Evidence as Evidence,
    record_evidence as record_evidence,
)
from .hookspecs import (
    API_VERSION as API_VERSION,
    Role as Role,
    hookimpl as hookimpl,
)
from .hunt.condition import Condition as Condition
from .invariants.rules import (
    Finding as Finding,
)
from .machine.e820 import (
    E820Entry as E820Entry,
    E820Type as E820Type,
    MemoryMap as MemoryMap,
)
from .machine.model import (
    BootState as BootState,
    CpuFeatures as CpuFeatures,
    KernelImage as KernelImage,
    Machine as Machine,
    Provenance as Provenance,
    Span as Span,
)
from .machine.paging import (
    GIB as GIB,
    ISA_END as ISA_END,
    MIB as MIB,
    MODES as MODES,
    PAGE_SHIFT as PAGE_SHIFT,
    PAGE_SIZE as PAGE_SIZE,
    PagingMode as PagingMode,
)
from .machine.ranges import (
    RangeMap as RangeMap,
    Ranges as Ranges,
    RangeSet as RangeSet,
    ValuedRanges as ValuedRanges,
    align_down as align_down,
    align_up as align_up,
)
from .machine.release import (
    Version as Version,
    dotted as dotted,
    leading_version as leading_version,
    parse_release as parse_release,
)
from .offers import default_specs as default_specs, load as load, load_all as load_all
from .options import (
    PluginSpec as PluginSpec,
)
from .printable import printable as printable
from .registry import Registry as Registry, default_registry as default_registry
from .report.summary import Total as Total, summary_table as summary_table
from .report.tables import figure_tables as figure_tables, machine_title as machine_title
from .run import Outcome as Outcome, Run as Run, Verdict as Verdict
from .scenario import Scenario as Scenario
from .sources import (
    bundled as bundled,
    bundled_machines as bundled_machines,
)
from .sources.bootlog.facts import (
    DomainKernel as DomainKernel,
    Fact as Fact,
    Hypervisor as Hypervisor,
    Place as Place,
    of_kind as of_kind,
)
from .sources.bootlog.lines import LineVerdict as LineVerdict, LogLine as LogLine
from .verify.linux.boots import (
    kernel_path as kernel_path,
    read_boot as read_boot,
    recorded_boot as recorded_boot,
)
from .verify.linux.qemu.errors import GdbError as GdbError
from .verify.linux.qemu.gdbremote import GdbClient as GdbClient
from .verify.linux.qemu.locate import Kernel as Kernel
from .view.charts import Drawing as Drawing, drawings as drawings, png as png, svg as svg
from .view.memory_map import memory_map as memory_map
from .view.notebook import Comparison as Comparison, frame as frame
from .view.page import page as page
from .view.palette import Theme as Theme
from .view.scene import Scene as Scene, scene as scene
from .view.sentences import Sentence as Sentence, sentences as sentences
from .view.story import Chapter as Chapter, chapters as chapters
from .view.survey import Exhibit as Exhibit, Subject as Subject, survey as survey, totals as totals
