//go:build !linux

package zoo

import "errors"

// listenFull returns an error, because only Linux drops connections silently when a queue is full.
func (z *Zoo) listenFull() (port int, err error) {
	return 0, errors.New("a listener whose queue is full is made for Linux only")
}
