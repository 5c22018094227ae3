package outbox

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// People read the schema in psql and in editors of tables, which show comments.
func TestSchema_HasACommentOnEverything(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	for _, bare := range testenv.QueryAll[string](t, env, `
	    select 'column ' || c.relname || '.' || a.attname
	    from pg_class c join pg_attribute a on a.attrelid = c.oid
	    where c.relnamespace = 'webhooks'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped
	      and coalesce(col_description(c.oid, a.attnum), '') = ''
	    union all
	    select 'table ' || c.relname from pg_class c
	    where c.relnamespace = 'webhooks'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and coalesce(obj_description(c.oid, 'pg_class'), '') = ''
	    union all
	    select 'function ' || p.oid::regprocedure from pg_proc p
	    where p.pronamespace = 'webhooks'::regnamespace and coalesce(obj_description(p.oid, 'pg_proc'), '') = ''
	    order by 1`) {
		t.Errorf("%s has no comment", bare)
	}
	for _, odd := range testenv.QueryAll[string](t, env, `
	    select d.description from pg_description d where d.description ~ '[^ -~]' and d.objoid in (
	        select oid from pg_class where relnamespace = 'webhooks'::regnamespace union all select oid from pg_proc where pronamespace = 'webhooks'::regnamespace)`) {
		t.Errorf("a comment is not plain ASCII, which not every database can store: %q", odd)
	}
}
