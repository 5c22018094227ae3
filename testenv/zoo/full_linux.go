package zoo

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// listenFull starts a listener on all addresses of 127.0.0.0/8 that accepts nothing and whose queue
// is full. Linux then drops further SYN packets silently.
func (z *Zoo) listenFull() (port int, err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	if !z.keep(os.NewFile(uintptr(fd), "full")) {
		return 0, net.ErrClosed
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{}); err != nil {
		return 0, fmt.Errorf("bind a socket: %w", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return 0, fmt.Errorf("listen on a socket: %w", err)
	}
	address, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("ask for the port of a socket: %w", err)
	}
	port = address.(*syscall.SockaddrInet4).Port
	const most = 16 // more connections than should fit into a queue of length zero
	for range most {
		conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 100*time.Millisecond)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return port, nil
		}
		if err != nil {
			return 0, fmt.Errorf("fill the queue of a socket: %w", err)
		}
		z.keep(conn)
	}
	return 0, fmt.Errorf("the queue of a socket takes more than %d connections", most)
}
