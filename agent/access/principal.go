package access

import (
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// Scope is what a token of a venue allows.
type Scope string

// The scopes of a token.
const (
	ScopeRead   Scope = "read"
	ScopeManage Scope = "manage"
)

// Role is the kind of a caller.
type Role string

// The roles. The zero Role may do nothing.
const (
	RoleOperator Role = "operator"
	RoleVenue    Role = "venue"
)

// Principal is a caller whose token or session was verified. Only a Verifier, and Sessions from what
// a Verifier made, give one that may do something; the zero value sees nothing and changes nothing.
type Principal struct {
	role    Role
	venue   string
	scope   Scope
	subject string
	expires time.Time
}

// Role returns the kind of the caller.
func (p Principal) Role() Role { return p.role }

// Venue returns the venue that the caller is confined to, "" for the operator.
func (p Principal) Venue() string { return p.venue }

// Scope returns what the caller may do with what he sees.
func (p Principal) Scope() Scope { return p.scope }

// MayManage reports whether the caller may change what he sees.
func (p Principal) MayManage() bool { return p.scope == ScopeManage }

// Expires returns when the caller's token or session ends, the zero time for the operator's token.
func (p Principal) Expires() time.Time { return p.expires }

// Subject returns who the caller is, for the log: the claim sub of a venue's token.
func (p Principal) Subject() string {
	if p.role == RoleOperator {
		return string(RoleOperator)
	}
	return p.subject
}

// Name identifies the caller where limits are counted: all tokens of a venue count together.
func (p Principal) Name() string { return string(p.role) + " " + p.venue }

// View returns what the caller sees of a database. That of the zero Principal sees nothing.
func (p Principal) View(db *outbox.DB) outbox.View {
	switch p.role {
	case RoleOperator:
		return db.AllVenues().View()
	case RoleVenue:
		return db.Venue(p.venue).View()
	}
	return outbox.View{}
}
