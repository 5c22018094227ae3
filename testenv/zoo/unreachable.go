package zoo

import (
	"fmt"
	"net"
)

// addUnreachable adds animals at 127.0.0.1 that a client cannot connect to.
func (z *Zoo) addUnreachable() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	closed := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	z.add(Animal{Name: "refuses", Does: "is not there: nothing listens on its port", URL: fmt.Sprintf("http://127.0.0.1:%d/refuses", closed)})
	if z.full, err = z.listenFull(); err != nil {
		return err
	}
	z.add(Animal{Name: "full", Does: "accepts no connection, and has no place left for one", URL: fmt.Sprintf("http://127.0.0.1:%d/full", z.full)})
	return nil
}
