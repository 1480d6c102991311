package testkit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// Cut is how a connection breaks at a COMMIT.
type Cut struct {
	// Forward lets the COMMIT reach the server, and only its answer gets lost. Otherwise the COMMIT itself does.
	Forward bool
	// Freeze keeps the connection open and silent, on both sides, until Thaw.
	Freeze bool
}

// Cutter is a proxy before a PostgreSQL server that breaks connections at a COMMIT. It sees those that are simple queries, as pgx sends
// them, on connections without TLS. Its methods may be called from any goroutine.
type Cutter struct {
	relay *relay

	mu     sync.Mutex // guards what follows
	choose func() *Cut
	cuts   int
	thaw   chan struct{} // closed to end the frozen connections
}

// StartCutter starts a proxy before the server with this host and port, which cuts nothing yet. The caller must call Close.
func StartCutter(ctx context.Context, upstream string) (*Cutter, error) {
	k := &Cutter{choose: cutNone, thaw: make(chan struct{})}
	var err error
	if k.relay, err = newRelay(ctx, upstream, k.serve); err != nil {
		return nil, err
	}
	return k, nil
}

// OwnCutter starts a proxy for this test alone and closes it when the test ends.
func OwnCutter(t testing.TB, upstream string) *Cutter {
	t.Helper()
	k, err := StartCutter(t.Context(), upstream)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, k.Close()) })
	return k
}

// Address returns the host and port for clients.
func (k *Cutter) Address() string { return k.relay.address }

// URL returns the URL with the proxy's address in place of the server's.
func (k *Cutter) URL(serverURL string) (string, error) { return k.relay.through(serverURL) }

// Off cuts no further COMMIT.
func (k *Cutter) Off() { k.set(cutNone) }

// Once cuts the next COMMIT, and none after it.
func (k *Cutter) Once(cut Cut) {
	left := 1
	k.set(func() *Cut {
		if left == 0 {
			return nil
		}
		left--
		return &cut
	})
}

// Every cuts each nth COMMIT, in the ways of cuts by turns.
func (k *Cutter) Every(n int, cuts ...Cut) {
	count := 0
	k.set(func() *Cut {
		count++
		if count%n != 0 {
			return nil
		}
		return &cuts[(count/n-1)%len(cuts)]
	})
}

// Random cuts a COMMIT with this probability, in one of the ways of cuts. The same seed chooses the same ones of a sequence of COMMITs.
func (k *Cutter) Random(seed uint64, probability float64, cuts ...Cut) {
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // to be repeated, not a secret
	k.set(func() *Cut {
		chance, way := random.Float64(), random.IntN(len(cuts))
		if chance >= probability {
			return nil
		}
		return &cuts[way]
	})
}

// Cuts returns the number of COMMITs cut so far.
func (k *Cutter) Cuts() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cuts
}

// Thaw ends the connections that are frozen: the peers see them closed.
func (k *Cutter) Thaw() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.thaw)
	k.thaw = make(chan struct{})
}

// Close ends the proxy and its connections.
func (k *Cutter) Close() error {
	k.Off()
	k.Thaw()
	return k.relay.close()
}

func cutNone() *Cut { return nil }

func (k *Cutter) set(choose func() *Cut) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.choose = choose
}

// next says how to cut a COMMIT, nil not at all, and what to wait for if it is frozen.
func (k *Cutter) next() (cut *Cut, thaw <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cut = k.choose(); cut != nil {
		k.cuts++
	}
	return cut, k.thaw
}

func (k *Cutter) serve(p *pair) {
	c := &cutConnection{pair: p, next: k.next, answered: make(chan struct{})}
	go c.returnAnswers()
	_ = c.passMessages() // when one peer has gone, the other one sees its connection end
	p.close(false)
	<-c.answered
}

// cutConnection is a connection through a Cutter.
type cutConnection struct {
	*pair
	next     func() (*Cut, <-chan struct{})
	cut      atomic.Pointer[Cut] // not nil once a COMMIT is cut
	answered chan struct{}       // closed when the server has answered the COMMIT that is cut, or has gone
}

// returnAnswers passes on what the server says, until a COMMIT is cut.
func (c *cutConnection) returnAnswers() {
	defer close(c.answered)
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buffer)
		cut := c.cut.Load()
		switch {
		case cut == nil:
			if err == nil {
				_, err = c.client.Write(buffer[:n])
			}
			if err != nil {
				c.close(false) // one of them has gone, and the other must see it
				return
			}
		case err != nil || !cut.Freeze:
			return // the answer to COMMIT goes nowhere
		}
	}
}

// commit is the message that is a COMMIT: its type, its length without the type, the text.
var commit = []byte("Q\x00\x00\x00\x0bCOMMIT\x00")

// passMessages passes on what the client says, see "Message Formats" in Postgres's documentation, up to the COMMIT that is cut.
func (c *cutConnection) passMessages() error {
	from, to := bufio.NewReaderSize(c.client, 64<<10), bufio.NewWriterSize(c.server, 64<<10)
	if err := passStartup(from, to); err != nil {
		return err
	}
	for {
		const header = 5 // type and length
		if from.Buffered() < header {
			if err := to.Flush(); err != nil {
				return err
			}
		}
		start, err := from.Peek(header)
		if err != nil {
			return err
		}
		length := 1 + int(binary.BigEndian.Uint32(start[1:]))
		if start[0] == commit[0] && length == len(commit) {
			message, err := from.Peek(length)
			if err != nil {
				return err
			}
			if bytes.EqualFold(message, commit) {
				if cut, thaw := c.next(); cut != nil {
					return c.cutAt(message, to, cut, thaw)
				}
			}
		}
		if _, err := io.CopyN(to, from, int64(length)); err != nil {
			return err
		}
	}
}

// passStartup passes on the first message, which has no type, and the requests for encryption before it.
func passStartup(from *bufio.Reader, to *bufio.Writer) error {
	for {
		const header = 8 // length and code
		start, err := from.Peek(header)
		if err != nil {
			return err
		}
		length, code := binary.BigEndian.Uint32(start), binary.BigEndian.Uint32(start[4:])
		if _, err := io.CopyN(to, from, int64(length)); err != nil {
			return err
		}
		if err := to.Flush(); err != nil {
			return err
		}
		const requests = 1234 // the major version of what is no startup message
		if code>>16 != requests {
			return nil
		}
	}
}

// cutAt returns when the connection is to be closed.
func (c *cutConnection) cutAt(message []byte, to *bufio.Writer, cut *Cut, thaw <-chan struct{}) error {
	c.cut.Store(cut)
	if cut.Forward {
		if _, err := to.Write(message); err != nil {
			return err
		}
	}
	if err := to.Flush(); err != nil {
		return fmt.Errorf("pass on a COMMIT: %w", err)
	}
	if cut.Forward && !cut.Freeze {
		<-c.answered
	}
	if cut.Freeze {
		<-thaw
	}
	return nil
}
