package testkit

import (
	"io"
	"sync"
	"time"

	"github.com/Shopify/toxiproxy/v2/toxics"
)

const valveType = "valve"

var registerValve = sync.OnceFunc(func() { toxics.Register(valveType, new(valve)) })

// valve is the one toxic of a Proxy's links. It stays in them for good. Toxiproxy's own toxics come and go, and that costs bytes: one that
// leaves drops what the peer doesn't take within 5 s, its timeout drops everything, and it lets the end of a connection pass.
type valve struct {
	open func(came time.Time) // returns when something that came at this time may pass
}

// GetBufferSize lets more than one chunk, of up to 32 KiB, be on its way at a time.
func (*valve) GetBufferSize() int { return 64 }

// Pipe passes on what comes until the connection's end, and then the end.
func (v *valve) Pipe(stub *toxics.ToxicStub) {
	defer stub.Close()
	for chunk := range stub.Input {
		v.open(chunk.Timestamp)
		stub.Output <- chunk
	}
	v.open(time.Now())
}

// linkEnd is where a link writes to. It takes everything, also when the connection is broken: a link whose end fails leaves its goroutines
// behind, with the next chunk in their hands.
type linkEnd struct {
	pair *pair
	to   io.WriteCloser
	done func()
}

func (e *linkEnd) Write(data []byte) (int, error) {
	if _, err := e.to.Write(data); err != nil {
		e.pair.close(false) // so the other end sees it, and the link ends
	}
	return len(data), nil
}

// Close is called once, at the end of the link.
func (e *linkEnd) Close() error {
	defer e.done()
	return e.to.Close()
}
