package recent

import (
	"fmt"
	"testing"
	"time"
)

func TestMap_ForgetsWhatIsOver(t *testing.T) {
	var m Map[int]
	now := time.Unix(1_000_000, 0)
	m.Add("ep_1", 7, now)
	if v, _ := m.Get("ep_1"); v != 7 {
		t.Error("an entry is not remembered")
	}
	if _, ok := m.Get("ep_2"); ok {
		t.Error("an entry is remembered that was never added")
	}
	m.Add("ep_2", 8, now.Add(Kept+1))
	if v, _ := m.Get("ep_1"); v != 7 {
		t.Error("an entry is forgotten too soon")
	}
	m.Add("ep_1", 9, now.Add(Kept+2))
	if v, _ := m.Get("ep_1"); v != 9 {
		t.Errorf("an entry is %d, want the later value", v)
	}
	m.Add("ep_3", 9, now.Add(3*Kept))
	m.Add("ep_4", 9, now.Add(5*Kept))
	if _, ok := m.Get("ep_1"); ok || m.Len() != 2 {
		t.Error("an entry is never forgotten")
	}
}

func TestMap_DoesNotGrow(t *testing.T) {
	var m Map[struct{}]
	now := time.Unix(1_000_000, 0)
	const added = 10_000
	for i := range added {
		id := fmt.Sprint("rpl_", i)
		m.Add(id, struct{}{}, now)
		if _, ok := m.Get(id); !ok {
			t.Fatalf("%s is forgotten at once", id)
		}
		now = now.Add(time.Second)
	}
	kept := int(Kept / time.Second)
	if _, ok := m.Get(fmt.Sprint("rpl_", added-kept)); !ok {
		t.Error("an entry is forgotten within Kept")
	}
	if _, ok := m.Get("rpl_0"); ok || m.Len() > 2*kept+2 {
		t.Errorf("%d entries are remembered", m.Len())
	}
}
