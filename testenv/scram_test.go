package testenv

import (
	"errors"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// PostgreSQL has each role's password from scramSecret, and asks for it by TCP.
func TestCluster_AsksForThePassword(t *testing.T) {
	t.Parallel()
	db := NewDB(t)
	for _, text := range []string{db.URL, db.LeastURL, db.SuperuserURL} {
		right, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), right.String())
		if err != nil {
			t.Fatalf("%s is refused: %v", right.Redacted(), err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		wrong := *right
		wrong.User = url.UserPassword(right.User.Username(), "another")
		_, err = pgx.Connect(t.Context(), wrong.String())
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "28P01" {
			t.Errorf("%s with another password: %v, want 28P01", wrong.Redacted(), err)
		}
	}
}
