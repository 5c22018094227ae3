package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

const selectPublication = `
select puballtables, pubinsert, pubupdate, pubdelete from pg_publication where pubname = $1`

// selectPublicationTables works since PostgreSQL 14. There the view has neither filters nor column
// lists, so its row as JSON lacks these keys. The last column lists the table's columns that are
// not published. The tables below the outbox, which $2 names, are left out.
var selectPublicationTables = treeOf("$2::text") + `
select t.schemaname || '.' || t.tablename, coalesce(to_jsonb(t) ->> 'rowfilter', ''),
       array(select a.attname::text
             from pg_attribute a
             join pg_class c on c.oid = a.attrelid
             join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = t.schemaname and c.relname = t.tablename and a.attnum > 0 and not a.attisdropped
               and not to_jsonb(t) -> 'attnames' ? a.attname::text
             order by a.attnum)
from pg_publication_tables t
where t.pubname = $1 and not exists (
          select from tree join pg_class c on c.oid = tree.relation join pg_namespace n on n.oid = c.relnamespace
          where tree.relation <> to_regclass($2::text) and n.nspname = t.schemaname and c.relname = t.tablename)
order by 1 limit 1000`

// published is a table in a publication.
type published struct {
	table, rowFilter string
	hidden           []string // columns that are not published
}

func (db *DB) checkPublications(ctx context.Context, tx pgx.Tx) (found []Finding, err error) {
	var read []string
	for _, column := range db.cfg.Columns.list() {
		read = append(read, column.name)
	}
	publications, err := db.cfg.publicationsOn(ctx, tx)
	if err != nil {
		return nil, err
	}
	for _, want := range publications {
		problems, err := db.checkPublication(ctx, tx, want, read)
		if err == nil && want.name == db.cfg.Publication && !slices.ContainsFunc(problems, Finding.fails) {
			var ofChildren []Finding
			ofChildren, err = db.checkChildren(ctx, tx)
			problems = append(problems, ofChildren...)
		}
		if err != nil {
			return found, err
		}
		if len(problems) == 0 {
			problems = []Finding{fine("publication "+want.name, "holds %s", strings.Join(want.shown, " and "))}
		}
		found = append(found, problems...)
	}
	return found, nil
}

// checkPublication returns what is wrong with one publication. read are the columns of the outbox
// that must be published. Of the agent's own tables, all columns must be.
func (db *DB) checkPublication(ctx context.Context, tx pgx.Tx, want publication, read []string) (found []Finding, err error) {
	thing, alter := "publication "+want.name, "ALTER PUBLICATION "+quoteIdent(want.name)
	var ofAll, inserts, updates, deletes bool
	err = tx.QueryRow(ctx, selectPublication, want.name).Scan(&ofAll, &inserts, &updates, &deletes)
	if errors.Is(err, pgx.ErrNoRows) {
		f := failure(thing, migrateRemedy, "it is missing in this database")
		f.passing = true // a migration makes it, last
		return []Finding{f}, nil
	}
	if err != nil {
		return nil, err
	}
	setPublish := alter + " SET (publish = '" + want.publish + "')"
	switch {
	case want.publish == allChanges && !(inserts && updates && deletes):
		found = append(found, failure(thing, setPublish, "it does not publish all changes"))
	case !inserts:
		found = append(found, failure(thing, setPublish, "it does not publish inserts"))
	case want.publish == onlyInserts && (updates || deletes):
		found = append(found, warning(thing, setPublish,
			"it publishes more than inserts: the app's updates fail on a table without a primary key"))
	}
	all, err := queryRows(ctx, tx, selectPublicationTables, func(row pgx.CollectableRow) (p published, err error) {
		err = row.Scan(&p.table, &p.rowFilter, &p.hidden)
		return p, err
	}, want.name, db.cfg.table())
	if err != nil {
		return found, err
	}
	setTables := alter + " SET TABLE " + strings.Join(want.tables, ", ")
	if ofAll { // PostgreSQL sets no tables of one FOR ALL TABLES
		setTables = "BEGIN; DROP PUBLICATION " + quoteIdent(want.name) + "; " + want.create() + "; COMMIT"
	}
	for i, table := range want.shown {
		at := slices.IndexFunc(all, func(p published) bool { return p.table == table })
		if at < 0 {
			found = append(found, want.lacks(want.tables[i:i+1], table))
			continue
		}
		of, err := db.checkPublished(ctx, tx, all[at], thing, alter, setTables, read)
		found = append(found, of...)
		if err != nil {
			return found, err
		}
		all = slices.Delete(all, at, at+1)
	}
	if len(all) > 0 {
		found = append(found, warning(thing, setTables, "it also holds %s, whose rows are streamed for nothing", others(all)))
	}
	return found, nil
}

// checkPublished returns what a publication leaves out of a table that it holds. thing, alter and
// setTables are parts of the texts of its findings.
func (db *DB) checkPublished(ctx context.Context, tx pgx.Tx, p published, thing, alter, setTables string, read []string) (found []Finding, err error) {
	schema, name := db.cfg.tableName()
	isOutbox := p.table == schema+"."+name
	switch {
	case p.rowFilter != "" && isOutbox:
		found = append(found, warning(thing, "nothing, if that is wanted; else "+setTables,
			"only rows of %s with %s are events: a filter leaves out all others", p.table, p.rowFilter))
	case p.rowFilter != "":
		found = append(found, failure(thing, setTables, "it drops rows of %s by a filter (%s)", p.table, p.rowFilter))
	}
	hidden := p.hidden
	if !strings.HasPrefix(p.table, "webhooks.") || p.table == db.cfg.Table {
		hidden = slices.DeleteFunc(hidden, func(column string) bool { return !slices.Contains(read, column) })
	}
	if isOutbox {
		var generated []Finding
		if hidden, generated, err = db.withoutGenerated(ctx, tx, thing, alter, hidden); err != nil {
			return found, err
		}
		found = append(found, generated...)
	}
	if at := slices.Index(hidden, db.cfg.Columns.Traceparent); isOutbox && at >= 0 {
		hidden = slices.Delete(hidden, at, at+1)
		f := failure(thing, setTables+", or remove outbox.columns.traceparent",
			"it leaves out column %q of %s, so no traceparent is sent", db.cfg.Columns.Traceparent, p.table)
		f.tolerated = true
		found = append(found, f)
	}
	if len(hidden) > 0 {
		found = append(found, failure(thing, setTables, "it leaves out columns of %s: %s", p.table, strings.Join(hidden, ", ")))
	}
	return found, nil
}

// checkChildren reports the children of the outbox that a publication leaves out.
func (db *DB) checkChildren(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	missing, err := queryRows(ctx, tx, selectUnpublishedChildren, pgx.RowTo[string], db.cfg.table(), db.cfg.Publication)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	members, err := db.cfg.filtered(ctx, tx, missing)
	if err != nil {
		return nil, err
	}
	more := ""
	if len(missing) > 1 {
		more = fmt.Sprintf(" and %d more", len(missing)-1)
	}
	return []Finding{failure("publication "+db.cfg.Publication,
		"ALTER PUBLICATION "+quoteIdent(db.cfg.Publication)+" ADD TABLE "+strings.Join(members, ", ")+", or let the agent's role own the outbox and the publication, so that it adds them itself",
		"it does not hold %s%s, which inherits from the outbox, so those rows are found by comparisons only", missing[0], more)}, nil
}

// others returns the first names of a list of tables and the number of the rest.
func others(all []published) string {
	if len(all) == 1 {
		return all[0].table
	}
	return fmt.Sprintf("%s and %d more", all[0].table, len(all)-1)
}
