package cli

import (
	"errors"
	"io"
	"sync"
	"syscall"
)

// answer is the standard output of a command. It remembers the first error, so that what prints line
// by line need not look: a command whose answer was lost must not end as if all were well.
type answer struct {
	io.Writer

	mu     sync.Mutex
	failed error
}

// Write implements io.Writer.
func (a *answer) Write(text []byte) (int, error) {
	n, err := a.Writer.Write(text)
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.failed == nil {
			a.failed = err
		}
	}
	return n, err
}

// lost returns the first error. A pipe whose reader has read enough, such as head, is none.
func (a *answer) lost() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(a.failed, syscall.EPIPE) {
		return nil
	}
	return a.failed
}
