// Package recent remembers what was said lately. A term may last for months, so what it notes for the
// sake of a few seconds must not stay for ever.
package recent

import "time"

// Kept is the least time that a Map remembers an entry. It is far longer than what the entries wait
// for: the end of a query, or of the moment between a decision and its entry in a queue.
const Kept = time.Minute

// Map remembers a value for each key. The zero value is empty. It has two generations: when the later
// one is older than Kept, the former one is dropped. A Map is for one goroutine at a time.
type Map[V any] struct {
	later, former map[string]V
	since         time.Time // when later was made
}

// Add sets the value of a key.
func (m *Map[V]) Add(key string, value V, now time.Time) {
	if now.Sub(m.since) > Kept {
		m.later, m.former, m.since = map[string]V{}, m.later, now
	}
	m.later[key] = value
}

// Get returns the value of a key, and whether the Map remembers one.
func (m *Map[V]) Get(key string) (value V, ok bool) {
	if value, ok = m.later[key]; !ok {
		value, ok = m.former[key]
	}
	return value, ok
}

// Len returns how many entries are held, at most one of each generation for a key.
func (m *Map[V]) Len() int { return len(m.later) + len(m.former) }
