package testkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// Direction is one of the two ways through a Proxy.
type Direction = stream.Direction

// The directions of a Proxy.
const (
	ToServer = stream.Upstream
	ToClient = stream.Downstream
)

// Proxy is a network between a server and its clients, made of Toxiproxy's links, that can be slow, silent or cut. Its faults hold for all
// connections, the open and the new. It never loses a byte of a connection that goes on, as TCP doesn't. Its methods may be called from any
// goroutine.
//
// To lead a Kafka broker's clients through one, start the Proxy first, with any address, give its own as the broker's property
// advertised.listeners, and Point it to the broker then.
type Proxy struct {
	relay  *relay
	links  *toxiproxy.Proxy
	server *toxiproxy.ApiServer

	mu      sync.Mutex // guards what follows
	faults  [stream.NumDirections]fault
	changed chan struct{} // closed when faults change
}

// fault is what one direction suffers.
type fault struct {
	silent          bool
	latency, jitter time.Duration
}

// StartProxy starts a proxy before the server with this host and port. The caller must call Close.
func StartProxy(ctx context.Context, upstream string) (*Proxy, error) {
	p := &Proxy{changed: make(chan struct{})}
	p.server = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	// It only carries the toxics: the connections are the relay's, who can reset them.
	p.links = toxiproxy.NewProxy(p.server, "", "", "")
	registerValve()
	for direction := range stream.NumDirections {
		added, err := p.links.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type": %q, "stream": %q}`, valveType, direction)))
		if err != nil {
			return nil, fmt.Errorf("start a proxy: %w", err)
		}
		added.Toxic.(*valve).open = func(came time.Time) { p.pass(direction, came) } //nolint:errcheck // it is the valve just added
	}
	var err error
	if p.relay, err = newRelay(ctx, upstream, p.serve); err != nil {
		return nil, err
	}
	return p, nil
}

// OwnProxy starts a proxy for this test alone and closes it when the test ends.
func OwnProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	p, err := StartProxy(t.Context(), upstream)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// Address returns the host and port for clients. It stays the same.
func (p *Proxy) Address() string { return p.relay.address }

// URL returns the URL with the proxy's address in place of the server's.
func (p *Proxy) URL(serverURL string) (string, error) { return p.relay.through(serverURL) }

// Latency delays what goes in either direction by d, give or take up to jitter.
func (p *Proxy) Latency(d, jitter time.Duration) {
	p.set(fault{latency: d, jitter: jitter}, ToServer, ToClient)
}

// Silence lets nothing pass in one direction, not even that the peer has closed its connection. What is sent meanwhile arrives after Heal.
func (p *Proxy) Silence(direction Direction) { p.set(fault{silent: true}, direction) }

// CutOff is Silence in both directions: connections are half-open, and new ones are accepted but get no answer.
func (p *Proxy) CutOff() { p.set(fault{silent: true}, ToServer, ToClient) }

// Heal ends the latency and the silence. The connections go on with all that was sent.
func (p *Proxy) Heal() { p.set(fault{}, ToServer, ToClient) }

// Reset ends the open connections with an RST, without what a silence holds back, and heals. New connections are served.
func (p *Proxy) Reset() {
	p.relay.closeAll(true)
	p.Heal()
}

// Disable ends the open connections, without what a silence holds back, refuses new ones, and heals.
func (p *Proxy) Disable() error {
	err := p.relay.disable()
	p.Heal()
	return err
}

// Enable accepts connections again.
func (p *Proxy) Enable(ctx context.Context) error { return p.relay.enable(ctx) }

// Point leads to another server from now on, and ends the open connections.
func (p *Proxy) Point(upstream string) { p.relay.point(upstream) }

// Close ends the proxy and its connections.
func (p *Proxy) Close() error {
	err := p.Disable()
	if closed := p.relay.close(); err == nil {
		err = closed
	}
	return err
}

func (p *Proxy) set(f fault, directions ...Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, direction := range directions {
		p.faults[direction] = f
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// pass returns when something that came at this time may go on.
func (p *Proxy) pass(direction Direction, came time.Time) {
	shake := 2*rand.Float64() - 1 //nolint:gosec // a delay, not a secret
	for {
		p.mu.Lock()
		f, changed := p.faults[direction], p.changed
		p.mu.Unlock()
		var due <-chan time.Time // never, in a silence
		if !f.silent {
			wait := f.latency + time.Duration(shake*float64(f.jitter)) - time.Since(came)
			if wait <= 0 {
				return
			}
			due = time.After(wait)
		}
		select {
		case <-due:
			return
		case <-changed:
		}
	}
}

// serve links the two connections of a pair, and returns when both links have ended.
func (p *Proxy) serve(pair *pair) {
	var both sync.WaitGroup
	both.Add(2) //nolint:mnd // two directions
	name := pair.client.RemoteAddr().String()
	p.links.Toxics.StartLink(p.server, name+ToServer.String(), pair.client, &linkEnd{pair: pair, to: pair.server, done: both.Done}, ToServer)
	p.links.Toxics.StartLink(p.server, name+ToClient.String(), pair.server, &linkEnd{pair: pair, to: pair.client, done: both.Done}, ToClient)
	both.Wait()
	pair.close(false)
}
