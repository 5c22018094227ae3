package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// selectVenues walks the index of the endpoints from one venue to the next, so its cost depends on
// the venues that it returns, not on their endpoints.
const selectVenues = `
with recursive walk (venue, nth) as (
    (select venue, 1 from webhooks.endpoints where venue >= $1 order by venue limit 1)
    union all
    select (select e.venue from webhooks.endpoints e where e.venue > walk.venue order by e.venue limit 1), nth + 1
    from walk where venue is not null and nth < $2
)
select venue from walk where venue is not null`

// Venues returns at most limit venues that have endpoints, in their order, the first at or after
// from.
func (v AllVenues) Venues(ctx context.Context, from string, limit int) (venues []string, err error) {
	if v.db == nil {
		return nil, errNoVenue
	}
	err = v.db.look(ctx, "list venues", func(tx pgx.Tx) error {
		venues, err = queryRows(ctx, tx, selectVenues, pgx.RowTo[string], from, limit)
		return err
	})
	return venues, err
}
