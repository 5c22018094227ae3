package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
)

// Problem is an error that a person can cause and put right. Its text is one sentence: the thing,
// the reason, the remedy.
type Problem struct {
	Thing  string
	Reason string
	Remedy string
	// Fatal reports that waiting does not help. A program that starts should end with the sentence.
	Fatal bool
	// Err is the cause. It is nil if a check found the Problem.
	Err error
}

// Kinds of problems of what people ask for. They are in the chain of a Problem, for code that has
// to answer each in a way of its own.
var (
	// ErrNotFound reports that a view does not have what was asked for.
	ErrNotFound = errors.New("not found")
	// ErrRefused reports that an endpoint cannot be sent to.
	ErrRefused = errors.New("refused")
	// ErrTooSlow reports that a query has taken too long and was ended.
	ErrTooSlow = errors.New("too slow")
)

// CheckText returns an error that says why PostgreSQL cannot store a text from a person. The error
// repeats no part of the text.
func CheckText(s string) error {
	if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
		return errors.New("is not valid UTF-8, or has a zero byte; write it in UTF-8")
	}
	return nil
}

func (p *Problem) Error() string {
	s := p.Thing + ": " + p.Reason
	if p.Remedy != "" {
		s += "; " + p.Remedy
	}
	return s
}

func (p *Problem) Unwrap() error { return p.Err }

// ErrFenced reports that another agent has taken over. This agent must not record anything more.
var ErrFenced = errors.New("another agent has taken over (checkpoint.epoch changed)")

// ErrSlotActive reports that another agent holds the replication slot.
var ErrSlotActive = errors.New("the replication slot is held by another agent")

// ErrServerShutdown reports that PostgreSQL is shutting down and waits for this connection to
// close.
var ErrServerShutdown = errors.New("PostgreSQL is shutting down")

// ErrOtherServer reports that the stream began on another server or on another timeline.
var ErrOtherServer = errors.New("the server has changed")

// ErrSlotGone reports that the slot cannot be streamed any more: it was dropped, or PostgreSQL has
// removed WAL that it needed.
var ErrSlotGone = errors.New("the replication slot is gone or lost")

// ErrSlotMoved reports that the slot or the server is not where the stream left it.
var ErrSlotMoved = errors.New("the replication slot was advanced or made anew by someone else, or an earlier state of the server was restored")

// ErrUndecodable reports that the slot's next changes cannot be decoded. At their position, the
// publication or a column did not exist, and making it now does not help. PrepareSlot with replace
// must make a new slot.
var ErrUndecodable = errors.New("the next changes of the stream were made while the publication or a required column did not exist")

// These are the SQLSTATEs that the code distinguishes:
// https://www.postgresql.org/docs/current/errcodes-appendix.html.
const (
	codeInvalidPassword      = "28P01"
	codeInvalidAuthorization = "28000"
	codeNoDatabase           = "3D000"
	codeNoPrivilege          = "42501"
	codeProtocolViolation    = "08P01"
	codeFeature              = "0A000"
	codeCannotChange         = "55P02"
	codeInvalidParameter     = "22023"
	codeNotInEncoding        = "22021"
	codeUntranslatable       = "22P05"
	codeSyntax               = "42601"
	codeDuplicateStatement   = "42P05"
	codeNoStatement          = "26000"
	codeNoTable              = "42P01"
	codeNoColumn             = "42703"
	codeNoFunction           = "42883"
	codeNoSchema             = "3F000"
	codeNoObject             = "42704"
	codeDuplicateObject      = "42710"
	codeUniqueViolation      = "23505"
	codeObjectInUse          = "55006"
	codeNotPrerequisite      = "55000"
	codeLimitExceeded        = "53400"
	codeTooManyConnections   = "53300"
	codeReadOnly             = "25006"
	codeAdminShutdown        = "57P01"
	codeCrashShutdown        = "57P02"
	codeCannotConnectNow     = "57P03"

	classDataException = "22"
	classIntegrity     = "23"
	classRaised        = "P0" // raised by a trigger in PL/pgSQL
	classProgramLimit  = "54" // for example, a key that is too long for an index
)

// SQLState returns the SQLSTATE of err, or "" if err is no answer of PostgreSQL.
func SQLState(err error) string {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Code
	}
	return ""
}

// explain turns err into a Problem if the remedy is known. It returns any other error as it is,
// with the operation in front if the text needs it. operation says what was being done.
func (c Config) explain(operation string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Problem](err); ok {
		return err
	}
	host, user, database := c.names()
	pe, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
			return &Problem{Thing: "PostgreSQL at " + host, Reason: "cannot connect (" + rootCause(err) + ")",
				Remedy: "check that it runs and that database.url names it", Err: err}
		}
		return fmt.Errorf("%s: %w", operation, err)
	}
	p := &Problem{Err: err}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	switch pe.Code {
	case codeProtocolViolation: // PgBouncer uses this code for all that it refuses
		if connecting {
			return c.poolerBetween(pe.Message, err)
		}
		return fmt.Errorf("%s: %w", operation, err)
	// A pooler gives each transaction a different session.
	case codeDuplicateStatement, codeNoStatement:
		return c.poolerBetween(pe.Message, err)
	case codeNoObject, codeInvalidParameter, codeCannotChange, codeSyntax:
		if !connecting {
			return fmt.Errorf("%s: %w", operation, err)
		}
		p.Thing, p.Reason, p.Fatal = "database.url", "PostgreSQL refuses one of its parameters ("+pe.Message+")", true
		p.Remedy = "take the parameter out of it, or out of PGOPTIONS"
	case codeFeature:
		if !connecting {
			return fmt.Errorf("%s: %w", operation, err)
		}
		p.Thing, p.Reason, p.Fatal = "PostgreSQL at "+host, "it refuses the connection ("+pe.Message+")", true
		p.Remedy = "name in database.url a PostgreSQL server itself, and a database whose text can be read as UTF8"
	case codeNotInEncoding:
		p.Thing, p.Reason, p.Remedy = operation, "a text that was given is not valid UTF-8, or has a zero byte", "write it in UTF-8"
	case codeUntranslatable:
		p.Thing, p.Reason = operation, "a text that was given has a character that the database's encoding does not have"
		p.Remedy = "write it with others, or use a database of the encoding UTF8"
	case codeInvalidPassword:
		p.Thing, p.Reason, p.Remedy, p.Fatal = fmt.Sprintf("role %q", user), "PostgreSQL refused the password", "correct the password in database.url", true
	case codeInvalidAuthorization:
		p.Thing, p.Reason, p.Remedy, p.Fatal = fmt.Sprintf("role %q", user), pe.Message,
			"create the role, or let it in by pg_hba.conf, or correct database.url", true
	case codeNoDatabase:
		p.Thing, p.Reason, p.Remedy, p.Fatal = fmt.Sprintf("database %q", database), "it does not exist at "+host, "correct database.url or create it", true
	case codeNoPrivilege:
		p.Thing, p.Reason, p.Fatal = fmt.Sprintf("role %q", user), pe.Message, true
		p.Remedy = "grant it what webhook-agent check names"
	case codeNoTable, codeNoSchema:
		p.Thing, p.Reason, p.Remedy, p.Fatal = "schema webhooks", pe.Message, "run webhook-agent migrate", true
	case codeTooManyConnections:
		p.Thing, p.Reason, p.Remedy = "PostgreSQL at "+host, pe.Message,
			fmt.Sprintf("the agent needs %d connections: raise the limit that is named here (ALTER ROLE %s CONNECTION LIMIT, ALTER DATABASE %s CONNECTION LIMIT, max_connections or max_wal_senders), or close connections",
				connectionsNeeded, quoteIdent(user), quoteIdent(database))
	case codeLimitExceeded:
		p.Thing, p.Reason, p.Fatal = fmt.Sprintf("replication slot %q", c.Slot), pe.Message, true
		p.Remedy = "raise max_replication_slots, or drop one that nothing uses (select slot_name from pg_replication_slots where not active)"
	case codeReadOnly:
		p.Thing, p.Reason, p.Remedy = "PostgreSQL at "+host, "it is read-only (it is a standby, or default_transaction_read_only is on)",
			"point database.url at the primary, or ALTER ROLE or ALTER DATABASE ... RESET default_transaction_read_only"
	case codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		p.Thing, p.Reason, p.Remedy = "PostgreSQL at "+host, pe.Message, "the agent tries again by itself"
	default:
		return fmt.Errorf("%s: %w", operation, err)
	}
	return p
}

// names returns the names of the server, the role and the database as sentences use them.
func (c Config) names() (host, user, database string) {
	cc, err := c.connConfig()
	switch {
	case err != nil:
		return "the server", "", ""
	case strings.HasPrefix(cc.Host, "/"):
		return cc.Host, cc.User, cc.Database
	}
	return fmt.Sprintf("%s:%d", cc.Host, cc.Port), cc.User, cc.Database
}

// poolerBetween returns the Problem of a connection that does not reach the server itself.
func (c Config) poolerBetween(reason string, err error) error {
	host, _, _ := c.names()
	return &Problem{Thing: "PostgreSQL at " + host, Reason: "a pooler (such as PgBouncer) is in between (" + reason + ")",
		Remedy: "database.url must name the PostgreSQL server itself: a pooler does not support replication connections", Fatal: true, Err: err}
}

// rootCause returns the innermost text of a connection error. It leaves out the user, the database
// and the addresses, which the outer texts repeat.
func rootCause(err error) string {
	if de, ok := errors.AsType[*net.DNSError](err); ok {
		return "no such host " + de.Name
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timed out"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the server closed the connection"
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
				err = joined.Unwrap()[0]
				continue
			}
			return err.Error()
		}
		err = next
	}
}
