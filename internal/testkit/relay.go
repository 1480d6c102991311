package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"time"
)

// relay accepts connections on a port of 127.0.0.1, which is its own until close, and brings each together with one to a server.
type relay struct {
	address string
	lock    *os.File // of the port
	serve   func(*pair)

	mu       sync.Mutex // guards what follows
	upstream string
	listener net.Listener // nil while connections are refused
	pairs    map[*pair]struct{}
	all      sync.WaitGroup // the goroutines that accept and serve
}

// pair is a client's connection and the one to the server that belongs to it.
type pair struct {
	client, server *net.TCPConn
}

// close ends both connections. With reset the peers get an RST, and what was on its way is lost.
func (p *pair) close(reset bool) {
	for _, connection := range []*net.TCPConn{p.client, p.server} {
		if reset {
			_ = connection.SetLinger(0) // it fails on a closed connection only
		}
		_ = connection.Close() // the same
	}
}

// newRelay starts a relay. serve has a goroutine of its own for each pair, and returns when both connections are closed.
func newRelay(ctx context.Context, upstream string, serve func(*pair)) (*relay, error) {
	r := &relay{serve: serve, upstream: upstream, pairs: map[*pair]struct{}{}}
	err := onFreePorts(func() error {
		port, lock, err := reservePort()
		if err != nil {
			return err
		}
		r.address, r.lock = address(port), lock
		if err := r.enable(ctx); err != nil {
			return errors.Join(errPortTaken, err, lock.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	}
	return r, nil
}

// enable accepts connections again. It does nothing when they are accepted.
func (r *relay) enable(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.address)
	if err != nil {
		return err
	}
	r.listener = listener
	r.all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // disabled
			}
			r.all.Go(func() { r.meet(client, listener) })
		}
	})
	return nil
}

// meet connects a client to the server. The client sees its connection end when that fails.
func (r *relay) meet(client net.Conn, listener net.Listener) {
	r.mu.Lock()
	upstream := r.upstream
	r.mu.Unlock()
	const dialTimeout = 5 * time.Second // close waits for it
	server, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(context.Background(), "tcp", upstream)
	if err != nil {
		_ = client.Close() // there is nobody to tell
		return
	}
	p := &pair{client.(*net.TCPConn), server.(*net.TCPConn)} //nolint:errcheck // both are TCP
	r.mu.Lock()
	late := r.listener != listener || r.upstream != upstream
	if !late {
		r.pairs[p] = struct{}{}
	}
	r.mu.Unlock()
	if late {
		p.close(false)
		return
	}
	r.serve(p)
	r.mu.Lock()
	delete(r.pairs, p)
	r.mu.Unlock()
}

// closeAll ends the open connections.
func (r *relay) closeAll(reset bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		p.close(reset)
	}
}

// disable ends the open connections and refuses new ones.
func (r *relay) disable() error {
	r.mu.Lock()
	listener := r.listener
	r.listener = nil
	r.mu.Unlock()
	if listener == nil {
		return nil
	}
	err := listener.Close()
	r.closeAll(false)
	return err
}

// point changes the server.
func (r *relay) point(upstream string) {
	r.mu.Lock()
	r.upstream = upstream
	r.mu.Unlock()
	r.closeAll(false)
}

// close ends everything and waits for it.
func (r *relay) close() error {
	err := r.disable()
	r.all.Wait()
	if err := errors.Join(err, r.lock.Close()); err != nil {
		return fmt.Errorf("close a proxy: %w", err)
	}
	return nil
}

// through returns the URL with the relay's address in place of the server's.
func (r *relay) through(serverURL string) (string, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "", fmt.Errorf("lead a URL through a proxy: %w", err)
	}
	u.Host = r.address
	return u.String(), nil
}
