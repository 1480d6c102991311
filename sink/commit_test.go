package sink_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/sink"
)

// cutter is a proxy before Postgres that breaks the connection at a COMMIT, once.
type cutter struct {
	armed atomic.Bool
	// forward lets the COMMIT reach the server, and only its answer gets lost.
	forward bool
	// thaw, if not nil, keeps the connection open and silent until it is closed.
	thaw chan struct{}
	cuts atomic.Int32
}

// through starts the proxy and returns the URL that leads through it.
func (k *cutter) through(b *bed) string {
	u, err := url.Parse(b.url)
	require.NoError(b, err)
	server := u.Host
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	require.NoError(b, err)
	var all sync.WaitGroup
	b.Cleanup(func() {
		require.NoError(b, listener.Close())
		all.Wait()
	})
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { k.serve(client, server) })
		}
	})
	u.Host = listener.Addr().String()
	return u.String()
}

func (k *cutter) serve(client net.Conn, address string) {
	defer client.Close() //nolint:errcheck // a broken connection is the point
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	var cut atomic.Bool
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		defer client.Close() //nolint:errcheck // the server has gone, and so must we
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if cut.Load() && k.thaw != nil && err == nil {
				continue
			}
			if err != nil || cut.Load() {
				return // the answer to COMMIT goes nowhere
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			break
		}
		if bytes.Contains(buf[:n], []byte("COMMIT\x00")) && k.armed.CompareAndSwap(true, false) {
			k.cuts.Add(1)
			cut.Store(true)
			if k.forward {
				if _, err := server.Write(buf[:n]); err == nil && k.thaw == nil {
					<-answered
				}
			}
			if k.thaw != nil {
				<-k.thaw
			}
			break
		}
		if _, err := io.Copy(server, bytes.NewReader(buf[:n])); err != nil {
			break
		}
	}
	server.Close() //nolint:errcheck // a broken connection is the point
	client.Close() //nolint:errcheck // a broken connection is the point
	<-answered
}

// TestUnansweredCommit loses a COMMIT on its way, and its answer on the way back, and each with a connection that stays open and
// silent: the batch is stored once in every case.
func TestUnansweredCommit(t *testing.T) {
	for _, c := range []struct{ reaches, freezes bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		onBoth(t, func(b *bed) {
			k := &cutter{forward: c.reaches}
			if c.freezes {
				sink.SetAttemptTimeout(b.T, 500*time.Millisecond)
				k.thaw = make(chan struct{})
				defer close(k.thaw)
			}
			through := b.newSink(b.open(k.through(b)))
			c := b.claim()
			rounds := 3
			if k.thaw != nil { // the frozen session holds the lane's row until the server ends it, after 5 s
				rounds = 1
			}
			for range rounds {
				k.armed.Store(true)
				stored, err := through.Append(b.Context(), batch(c, 50))
				require.NoError(b, err)
				require.Equal(b, sink.Stored{Rows: 50}, stored)
				c.Next += 50
			}
			require.EqualValues(b, rounds, k.cuts.Load(), "each COMMIT was cut once")
			b.holds(int64(50*rounds), 0, int64(50*rounds))
		})
	}
}

// TestUnansweredCommitAndFenced: what became of the batch is the new owner's business.
func TestUnansweredCommitAndFenced(t *testing.T) {
	onBoth(t, func(b *bed) {
		k := &cutter{forward: true}
		through := b.newSink(b.open(k.through(b)))
		old := b.claim()
		lock, err := b.pool.Begin(b.Context()) // holds the COMMIT's successor up until the lane is claimed anew
		require.NoError(b, err)
		k.armed.Store(true)
		result := make(chan error, 1)
		go func() {
			_, err := through.Append(b.Context(), batch(old, 50))
			result <- err
		}()
		require.Eventually(b, func() bool { return k.cuts.Load() == 1 }, 10*time.Second, time.Millisecond)
		_, err = lock.Exec(b.Context(), `UPDATE audit_lane SET epoch = epoch + 1, owner = 'another'`)
		require.NoError(b, err)
		require.NoError(b, lock.Commit(b.Context()))
		select {
		case err = <-result:
		case <-time.After(20 * time.Second):
			b.Fatal("Append does not return")
		}
		if err != nil { // settled after the claim; before it, the batch was simply stored
			var fenced *sink.FencedError
			require.ErrorAs(b, err, &fenced)
		}
		b.holds(50, 0, 50)
	})
}
