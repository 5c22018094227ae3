// Package crashpoint names the places at which a test may kill the agent: between two steps of which one has happened
// and the other has not, where a promise about crashes holds or breaks.
//
// A binary that is built without the tag crashpoints has none of it: Hit is empty and inlined. With the tag, the
// environment variable WEBHOOK_AGENT_CRASHPOINT holds the name of a point, or "name:n", and the n-th pass there ends
// the process by SIGKILL, as a power cut would: no deferred function runs and nothing is flushed.
package crashpoint

// Variable is the environment variable that chooses the point.
const Variable = "WEBHOOK_AGENT_CRASHPOINT"

// Point is the name of one place.
type Point string

// The points, in the order data takes.
const (
	// AfterRead is in the Tailer: a batch is decoded and not yet handed over.
	AfterRead Point = "after-read"
	// BeforeDial is in the sink: an attempt has begun and no connection was looked for.
	BeforeDial Point = "before-dial"
	// AfterRequestWritten is in the sink: the kernel has the request, and the customer's server has not answered. See Conn.
	AfterRequestWritten Point = "after-request-written"
	// AfterResponse is in the sink: the status line is there and nobody was told.
	AfterResponse Point = "after-response"
	// BeforeLedgerCommit is in the Ledger: a group is gathered and its transaction has not begun.
	BeforeLedgerCommit Point = "before-ledger-commit"
	// InLedgerCommit is in the Ledger: everything is written and the commit is not sent.
	InLedgerCommit Point = "in-ledger-commit"
	// AfterLedgerCommit is in the Ledger: the commit is durable and neither the lanes nor the Tailer know it.
	AfterLedgerCommit Point = "after-ledger-commit"
	// BeforeConfirm is in the Tailer: a position is recorded that the server was not told yet.
	BeforeConfirm Point = "before-confirm"
	// InMigration is in Migrate: the schema is there and the publications are not.
	InMigration Point = "in-migration"
	// InReplay is in a step of a replay: deliveries are pending again and the cursor has not moved.
	InReplay Point = "in-replay"
	// InSlotRecovery is in PrepareSlot: the checkpoint is marked as recovering and the slot does not exist.
	InSlotRecovery Point = "in-slot-recovery"
	// InSweep is in a comparison after a step: its rows are there and the recovery has not ended.
	InSweep Point = "in-sweep"
)

// Points returns all points in the order of their declaration.
func Points() []Point {
	return []Point{AfterRead, BeforeDial, AfterRequestWritten, AfterResponse, BeforeLedgerCommit, InLedgerCommit,
		AfterLedgerCommit, BeforeConfirm, InMigration, InReplay, InSlotRecovery, InSweep}
}
