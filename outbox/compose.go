package outbox

import (
	"context"
	"fmt"
	"regexp"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// A statement that depends on the configuration is composed of named parts. ${name} stands for a
// piece of SQL, such as a quoted column or a condition. @name stands for a value that is sent apart
// from the text:
//
//	select o.${created} from ${table} o where o.${created} < @cutoff

// pieces maps names to parts of SQL.
type pieces map[string]string

var pieceName = regexp.MustCompile(`\$\{[a-z ]+\}`)

// in puts the pieces into a text. It does not replace names inside a piece. A name without a piece
// is a fault of this package.
func (p pieces) in(text string) string {
	return pieceName.ReplaceAllStringFunc(text, func(name string) string {
		piece, ok := p[name[2:len(name)-1]]
		if !ok {
			panic("a statement has no piece " + name)
		}
		return piece
	})
}

// values maps the names in a statement to values. Each name in the statement must have a value, and
// each value must be used.
type values map[string]any

// and returns the values together with further ones.
func (v values) and(further values) values {
	all := make(values, len(v)+len(further))
	for _, some := range []values{v, further} {
		for name, value := range some {
			all[name] = value
		}
	}
	return all
}

// valueName matches the name of a value in a statement.
var valueName = regexp.MustCompile(`@([a-z_]+)`)

// of returns those values that a statement uses.
func (v values) of(statement string) values {
	used := values{}
	for _, name := range valueName.FindAllStringSubmatch(statement, -1) {
		if value, ok := v[name[1]]; ok {
			used[name[1]] = value
		}
	}
	return used
}

// RewriteQuery implements pgx.QueryRewriter.
func (v values) RewriteQuery(ctx context.Context, conn *pgx.Conn, sql string, args []any) (string, []any, error) {
	if utf8.ValidString(sql) {
		return pgx.StrictNamedArgs(v).RewriteQuery(ctx, conn, sql, args)
	}
	// In a database whose encoding is SQL_ASCII, the condition of a row filter may hold any bytes.
	// pgx would end a text at the first byte that is not UTF-8. So pgx gets each byte as one
	// character.
	characters := make([]rune, len(sql))
	for i := range len(sql) {
		characters[i] = rune(sql[i])
	}
	rewritten, args, err := pgx.StrictNamedArgs(v).RewriteQuery(ctx, conn, string(characters), args)
	if err != nil {
		return "", nil, fmt.Errorf("name the values of a statement: %w", err)
	}
	var bytes []byte
	for _, r := range rewritten {
		bytes = append(bytes, byte(r))
	}
	return string(bytes), args, nil
}
