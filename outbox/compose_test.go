package outbox

import (
	"fmt"
	"testing"
)

func TestPieces_ArePutInAsTheyAre(t *testing.T) {
	t.Parallel()
	if got, want := (pieces{"a": `"${b}" and $1`, "b": "x"}).in(`select ${a}, ${b}, '${', $1, '{19}$'`), `select "${b}" and $1, x, '${', $1, '{19}$'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	defer func() {
		if recover() == nil {
			t.Error("a name without a piece is passed over")
		}
	}()
	pieces{"a": "x"}.in("select ${b}")
}

func TestValues_AreNumberedWhateverBytesTheTextHas(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"é", "caf\xe9", "\xff\x00", "\uFFFD"} {
		sql := fmt.Sprintf(`select @b, @a where v = '%[1]s @c' and "%[1]s" = @b`, text)
		got, args, err := values{"a": 1, "b": 2}.RewriteQuery(t.Context(), nil, sql, nil)
		must(t, err)
		if want := fmt.Sprintf(`select $1, $2 where v = '%[1]s @c' and "%[1]s" = $1`, text); got != want || fmt.Sprint(args) != "[2 1]" {
			t.Errorf("got %q with %v, want %q", got, args, want)
		}
	}
}

func TestValues_ThatAreLackingOrLeftOverAreErrors(t *testing.T) {
	t.Parallel()
	for _, v := range []values{{}, {"a": 1, "b": 2}} {
		for _, sql := range []string{"select @a", "select @a, '\xe9'"} {
			if got, _, err := v.RewriteQuery(t.Context(), nil, sql, nil); err == nil {
				t.Errorf("%v: got %s", v, got)
			}
		}
	}
}
