package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
)

// unseenLine matches the line of an agent's log which reports events that had passed the stream
// unseen (agent/recovery.go). The other one matches the line that start writes before the lines of
// each process.
var (
	unseenLine = regexp.MustCompile(`level=ERROR msg="events had passed the stream unseen .* recovered_deliveries=(\d+)`)
	startLine  = regexp.MustCompile(`^--- (\S+) starts at `)
)

// unseen returns what the agent's processes have found in this way.
func (a *agent) unseen() (all []unseen, err error) {
	file, err := os.Open(a.log)
	if err != nil {
		return nil, fmt.Errorf("read the log of agent %s: %w", a.name, err)
	}
	defer func() { _ = file.Close() }()
	process := a.name
	for in := bufio.NewReader(file); ; {
		line, err := in.ReadString('\n')
		if at := startLine.FindStringSubmatch(line); at != nil {
			process = at[1]
		} else if found := unseenLine.FindStringSubmatch(line); found != nil {
			n, err := strconv.Atoi(found[1])
			if err != nil {
				return nil, fmt.Errorf("read the log of agent %s: %w", a.name, err)
			}
			all = append(all, unseen{process, n})
		}
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil: // what cannot be read may hold what the run is judged by
			return nil, fmt.Errorf("read the log of agent %s: %w", a.name, err)
		}
	}
}
