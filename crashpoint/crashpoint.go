// Package crashpoint names the places at which a test can kill the agent. Each is between two
// steps: one has happened, the other has not. That is where a promise about crashes holds or
// breaks.
//
// Without the build tag crashpoints, the binary contains none of this: Hit is empty and inlined.
// With the tag, the environment variable WEBHOOK_AGENT_CRASHPOINT has the name of a point, or
// "name:n". The n-th call of Hit with that point ends the process by SIGKILL, like a power cut: no
// deferred function runs, and nothing is flushed.
package crashpoint

// Variable is the environment variable that chooses the point.
const Variable = "WEBHOOK_AGENT_CRASHPOINT"

// Point is the name of a place.
type Point string

// The points, in the order in which data passes them.
const (
	// AfterRead is in the Tailer: a batch is decoded, but not handed over yet.
	AfterRead Point = "after-read"
	// BeforeDial is in the sink: an attempt has begun, but has no connection yet.
	BeforeDial Point = "before-dial"
	// AfterRequestWritten is in the sink: the kernel has the request, but the customer's server has
	// not answered.
	AfterRequestWritten Point = "after-request-written"
	// AfterResponse is in the sink: the status line has arrived, but the result is not returned
	// yet.
	AfterResponse Point = "after-response"
	// BeforeLedgerCommit is in the Ledger: a group of entries is complete, but its transaction has
	// not begun.
	BeforeLedgerCommit Point = "before-ledger-commit"
	// InLedgerCommit is in the Ledger: everything is written, but the commit is not sent.
	InLedgerCommit Point = "in-ledger-commit"
	// AfterLedgerCommit is in the Ledger: the commit is durable, but the lanes and the Tailer do
	// not know it.
	AfterLedgerCommit Point = "after-ledger-commit"
	// InRefusal is in the Ledger: PostgreSQL has refused a group, and the group is not written anew
	// yet.
	InRefusal Point = "in-refusal"
	// InNotice is in the Ledger: a notice about an endpoint is written, but the commit is not sent.
	InNotice Point = "in-notice"
	// BeforeConfirm is in the Tailer: a position is recorded, but not confirmed to the server.
	BeforeConfirm Point = "before-confirm"
	// InMigration is in Migrate: the schema exists, but the publications do not.
	InMigration Point = "in-migration"
	// InReplay is in a step of a replay: deliveries are pending again, but the cursor has not
	// moved.
	InReplay Point = "in-replay"
	// InCancel is in a step of a canceled replay: deliveries are what they were again, but the
	// replay does not say so.
	InCancel Point = "in-cancel"
	// InSlotRecovery is in PrepareSlot: the checkpoint says that a recovery is needed, but the new
	// slot does not exist.
	InSlotRecovery Point = "in-slot-recovery"
	// InSweep is in a comparison after a step: its rows are written, but the recovery has not
	// ended.
	InSweep Point = "in-sweep"
)

// Points returns all points in the order of their declaration.
func Points() []Point {
	return []Point{AfterRead, BeforeDial, AfterRequestWritten, AfterResponse, BeforeLedgerCommit, InLedgerCommit,
		AfterLedgerCommit, InRefusal, InNotice, BeforeConfirm, InMigration, InReplay, InCancel, InSlotRecovery, InSweep}
}
