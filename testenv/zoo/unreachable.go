package zoo

import (
	"fmt"
	"net"
)

// addUnreachable adds animals at 127.0.0.1 that a client cannot connect to.
func (z *Zoo) addUnreachable() error {
	closed, err := z.holdPort()
	if err != nil {
		return err
	}
	z.add(Animal{Name: "refuses", Does: "is not there: nothing listens on its port", URL: fmt.Sprintf("http://127.0.0.1:%d/refuses", closed)})
	if z.full, err = z.listenFull(); err != nil {
		return err
	}
	z.add(Animal{Name: "full", Does: "accepts no connection, and has no place left for one", URL: fmt.Sprintf("http://127.0.0.1:%d/full", z.full)})
	return nil
}

// holdPort returns a port on which nothing listens, and nothing can: a connection of the zoo's own
// has it. A port that was only free a moment ago may be given to somebody else.
func (z *Zoo) holdPort() (port int, err error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("hold a port: %w", err)
	}
	z.keep(listener)
	conn, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("hold a port: %w", err)
	}
	z.keep(conn)
	return conn.LocalAddr().(*net.TCPAddr).Port, nil
}
