package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// moment is a time in a run: how long after its begin, by the torture's own clock, which nobody
// moves.
type moment = time.Duration

// stopwatch returns the moments of a run. Any number of goroutines may use it.
type stopwatch struct{ begun time.Time }

func (s stopwatch) now() moment { return time.Since(s.begun) }

// at returns the moment of a time that the database reported. Both clocks are those of this
// machine.
func (s stopwatch) at(t time.Time) moment { return t.Sub(s.begun.Round(0)) }

// runInfo has the settings of a run.
type runInfo struct {
	Begun        time.Time
	Seed         uint64
	Length       time.Duration
	Only         []kind `json:",omitempty"`
	Commit       string
	PostgreSQL   string
	DisableAfter int // delivery.disable_after of the agents
	Attempts     int // how many attempts an agent makes for a delivery: one and the retries
	Timeout      time.Duration
}

// behavior is how a customer's server answers.
type behavior string

const (
	healthy behavior = "healthy"
	slow    behavior = "slow"  // after 300 to 900 ms
	flaky   behavior = "flaky" // one in five requests gets 500
	// resetting receives the request and resets the connection, until mend at the end.
	resetting behavior = "resetting"
	dead      behavior = "dead" // nothing listens
	hung      behavior = "hung" // never answers
)

// answers reports whether the endpoint can answer with success, at least at the end of the run.
func (b behavior) answers() bool { return b != dead && b != hung }

// endpointInfo is one endpoint, as it was registered.
type endpointInfo struct {
	ID, Venue string
	Events    []string
	Behavior  behavior
	secret    string // is not written to the files
	url       string
}

// write is one transaction of a writer. It is entered before it begins.
type write struct {
	Tx     string
	At     moment
	Events []writtenEvent
}

// writtenEvent is one event of a transaction.
type writtenEvent struct {
	ID, Type, Venue string
	Created         time.Time
	Data            string // the exact text
	Undone          bool   `json:",omitempty"` // undone by ROLLBACK TO SAVEPOINT
}

// fate is how a transaction ended, as its writer knows it.
type fate string

const (
	committed  fate = "committed"
	rolledBack fate = "rolled back" // by the writer, or by an error before COMMIT was sent
	unknown    fate = "unknown"     // COMMIT was sent, and no answer came
)

// ending records how a transaction ended.
type ending struct {
	Tx   string
	At   moment
	Fate fate
}

// request is a request that arrived at a receiver. It is entered before it is answered.
type request struct {
	N        int64
	At       moment
	Endpoint string
	Event    string // Webhook-Id
	Agent    string // the process that sent it, by its User-Agent
	Hash     string // SHA-256 of the body
	Body     string `json:",omitempty"` // set if no request of the event had this hash before
	// Quintago and Standard say what is wrong with the signature of each scheme. They are "" if it
	// is valid.
	Quintago, Standard string `json:",omitempty"`
	// Ahead is Webhook-Timestamp minus the time of arrival, in whole seconds.
	Ahead time.Duration
	Plan  int // the status to answer with; 0 for none
}

// answer records how a request ended.
type answer struct {
	N      int64 // the number of the request
	At     moment
	Status int // the status that was written; 0 if the connection was reset or had ended
}

// agentRun is one process of an agent. It is entered when it starts, and again when it has ended.
type agentRun struct {
	Agent string // a.17: the 17th process of agent a
	At    moment
	Ended bool   `json:",omitempty"`
	How   string `json:",omitempty"` // killed, stopped, or how it ended by itself
	Fault string `json:",omitempty"` // what is wrong with that; "" if nothing is
}

// operation is something that the operator did by SQL.
type operation struct {
	At       moment
	Endpoint string
	Fate     fate
	// These fields are for an endpoint that was found disabled. Enabled reports whether the
	// operator enabled it again.
	Enabled    bool   `json:",omitempty"`
	Generation int64  `json:",omitempty"`
	Failures   int    `json:",omitempty"` // consecutive failures in this generation
	Reason     string `json:",omitempty"`
	DisabledAt moment `json:",omitempty"`
	// These fields are for a replay.
	Replay   string   `json:",omitempty"`
	Events   []string `json:",omitempty"` // nil for all events of the endpoint
	Statuses []string `json:",omitempty"`
}

// resources are what a process of an agent uses, as its own metrics report.
type resources struct {
	At         moment
	Phase      string // base or end
	Agent      string
	Leading    bool
	Goroutines int
	Files      int
	Bytes      int64 // resident
}

// unseen is what a process found by comparing the outbox with the delivery log, although nothing
// had happened that lets the stream pass events over. The comparison delivers these events, so none
// is lost. But the position had been ahead of what was recorded.
type unseen struct {
	Agent      string
	Deliveries int
}

// These are rows of the database at the end of the run.
type (
	deliveryRow struct {
		Event, Endpoint, Venue, Type string
		Status                       string
		Attempts                     int
		Code                         int    `json:",omitempty"`
		Replay                       string `json:",omitempty"`
	}
	attemptRow struct {
		Event, Endpoint string
		Attempt         int
		At              moment // by the agent's clock
		Code            int    `json:",omitempty"`
		Class           string
	}
	endpointRow struct {
		ID               string
		Disabled         bool
		Reason           string `json:",omitempty"`
		DisabledAt       moment `json:",omitempty"`
		Generation       int64
		Failures         int // consecutive
		HealthGeneration int64
	}
	replayRow struct {
		ID, Endpoint, State, Error string
	}
	// rewrittenRow is a change of a delivery that had ended, if no replay made it. A trigger has
	// kept it.
	rewrittenRow struct {
		Event, Endpoint, Before, After string
		At                             moment
	}
)

// history is everything that is known about a run. The checker sees nothing else.
type history struct {
	Run        runInfo
	Endpoints  []endpointInfo
	Writes     []write
	Endings    []ending
	Requests   []request
	Answers    []answer
	Faults     []fault
	Agents     []agentRun
	Operations []operation
	Resources  []resources
	Unseen     []unseen
	Outbox     []string // ids
	Deliveries []deliveryRow
	Attempts   []attemptRow
	Rows       []endpointRow
	Replays    []replayRow
	Rewritten  []rewrittenRow
}

// These are the files of a run. Each record is one line of JSON.
const (
	runFile        = "run"
	endpointsFile  = "endpoints"
	writesFile     = "writes"
	endingsFile    = "endings"
	requestsFile   = "requests"
	answersFile    = "answers"
	faultsFile     = "faults"
	agentsFile     = "agents"
	operationsFile = "operations"
	resourcesFile  = "resources"
	unseenFile     = "unseen"
	outboxFile     = "db-outbox"
	deliveriesFile = "db-deliveries"
	attemptsFile   = "db-attempts"
	rowsFile       = "db-endpoints"
	replaysFile    = "db-replays"
	rewrittenFile  = "db-rewritten"
)

// path returns the path of a file of a run.
func path(dir, name string) string { return filepath.Join(dir, name+".jsonl") }

// journal is a file of a run while it is written. When add returns, the record is in the file. So
// nothing happens in a run that was not written down before.
type journal[T any] struct {
	mu   sync.Mutex // guards all below
	file *os.File
	err  error // the first error; close returns it
}

func openJournal[T any](dir, name string) (*journal[T], error) {
	file, err := os.OpenFile(path(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the file %s of the run: %w", name, err)
	}
	return &journal[T]{file: file}, nil
}

func (j *journal[T]) add(record T) {
	line, err := json.Marshal(record)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil && j.err == nil {
		j.err = fmt.Errorf("write %s: %w", j.file.Name(), err)
	}
}

func (j *journal[T]) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.err, j.file.Close())
}

// save writes a file with all records of one kind.
func save[T any](dir, name string, records []T) error {
	j, err := openJournal[T](dir, name)
	if err != nil {
		return err
	}
	for _, r := range records {
		j.add(r)
	}
	return j.close()
}

// load reads the records of one kind.
func load[T any](dir, name string) (records []T, err error) {
	file, err := os.Open(path(dir, name))
	if err != nil {
		return nil, fmt.Errorf("read the run: %w", err)
	}
	defer func() { _ = file.Close() }()
	decoder := json.NewDecoder(bufio.NewReaderSize(file, 1<<20))
	for decoder.More() {
		var r T
		if err := decoder.Decode(&r); err != nil {
			return nil, fmt.Errorf("read %s, record %d: %w", file.Name(), len(records)+1, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// loadHistory reads all files of a run.
func loadHistory(dir string) (*history, error) {
	h := &history{}
	runs, err := load[runInfo](dir, runFile)
	if err == nil && len(runs) != 1 {
		err = fmt.Errorf("read the run: %d records in %s, want one", len(runs), runFile)
	}
	if err != nil {
		return nil, err
	}
	h.Run = runs[0]
	err = errors.Join(
		into(&h.Endpoints, dir, endpointsFile), into(&h.Writes, dir, writesFile), into(&h.Endings, dir, endingsFile),
		into(&h.Requests, dir, requestsFile), into(&h.Answers, dir, answersFile), into(&h.Faults, dir, faultsFile),
		into(&h.Agents, dir, agentsFile), into(&h.Operations, dir, operationsFile), into(&h.Resources, dir, resourcesFile),
		into(&h.Unseen, dir, unseenFile), into(&h.Outbox, dir, outboxFile), into(&h.Deliveries, dir, deliveriesFile), into(&h.Attempts, dir, attemptsFile),
		into(&h.Rows, dir, rowsFile), into(&h.Replays, dir, replaysFile), into(&h.Rewritten, dir, rewrittenFile),
	)
	return h, err
}

func into[T any](records *[]T, dir, name string) (err error) {
	*records, err = load[T](dir, name)
	return err
}
