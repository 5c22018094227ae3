package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"strconv"
)

// The line of an agent's log by which it says that it has found what had passed the stream unseen (agent/reconcile.go), and the one that
// start writes before those of a process.
var (
	unseenLine = regexp.MustCompile(`level=ERROR msg="events had passed the stream unseen .* recovered_deliveries=(\d+)`)
	startLine  = regexp.MustCompile(`^--- (\S+) starts at `)
)

// unseen returns what the processes of the agent have found so.
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
			n, _ := strconv.Atoi(found[1])
			all = append(all, unseen{process, n})
		}
		if err != nil {
			break // the end
		}
	}
	return all, nil
}
