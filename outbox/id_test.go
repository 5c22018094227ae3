package outbox

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// crockford is the alphabet of ULIDs (https://github.com/ulid/spec).
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func TestNewID_IsAULIDOfTheTimeWithEightyRandomBits(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	before := time.Now()
	const n = 4000
	ids := testenv.QueryAll[string](t, env, `select webhooks.new_id('evt') from generate_series(1, 4000)`)
	after := time.Now()
	seen := map[string]bool{}
	var digits [26][len(crockford)]int // how often each digit occurs at each place
	times := make([]string, 0, n)
	for _, id := range ids {
		ulid, ok := strings.CutPrefix(id, "evt_")
		if !ok || len(ulid) != len(digits) || seen[ulid] {
			t.Fatalf("%q is no evt_ and 26 digits, or came twice", id)
		}
		seen[ulid] = true
		var ms int64
		for place, digit := range ulid {
			value := strings.IndexRune(crockford, digit)
			if value < 0 {
				t.Fatalf("%q has a digit %q", id, digit)
			}
			digits[place][value]++
			if place < 10 {
				ms = ms<<5 | int64(value)
			}
		}
		if at := time.UnixMilli(ms); at.Before(before.Add(-time.Second)) || at.After(after.Add(time.Second)) {
			t.Fatalf("%q is of %s, it is %s", id, at, after)
		}
		times = append(times, ulid[:10])
	}
	if len(ids) != n || !slices.IsSorted(times) {
		t.Errorf("%d ids, sorted by their time: %t", len(ids), slices.IsSorted(times))
	}
	// The expected count of each digit at each place is 125, with a standard deviation of 11.
	for place := 10; place < len(digits); place++ {
		for value, count := range digits[place] {
			if count < 125-6*11 || count > 125+6*11 {
				t.Errorf("the digit %c stands %d times at place %d of %d random ones", crockford[value], count, place, n)
			}
		}
	}
}
