package testkit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo is a server that sends every line back, and says in lines what it got.
func echo(t *testing.T) (address string, lines chan string) {
	t.Helper()
	lines = make(chan string, 100)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close() //nolint:errcheck // the client sees
				reader := bufio.NewReader(connection)
				for {
					line, err := reader.ReadString('\n')
					if err != nil {
						lines <- "end"
						return
					}
					lines <- strings.TrimSpace(line)
					if _, err := io.WriteString(connection, line); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	return listener.Addr().String(), lines
}

// caller is a client of echo. Its answers are the lines that came back, and at the end an error's text.
type caller struct {
	net.Conn
	answers chan string
}

func call(t *testing.T, address string) *caller {
	t.Helper()
	connection, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	c := &caller{connection, make(chan string, 100)}
	go func() {
		reader := bufio.NewReader(connection)
		for {
			line, err := reader.ReadString('\n')
			switch {
			case errors.Is(err, io.EOF):
				c.answers <- "EOF"
			case errors.Is(err, syscall.ECONNRESET):
				c.answers <- "RST"
			case err != nil:
				c.answers <- err.Error()
			default:
				c.answers <- strings.TrimSpace(line)
				continue
			}
			return
		}
	}()
	t.Cleanup(func() { _ = connection.Close() }) // some tests close it before
	return c
}

func (c *caller) say(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(c, line+"\n")
	require.NoError(t, err)
}

// next returns what comes, or "nothing" when nothing does for a while.
func next(lines chan string, patience time.Duration) string {
	select {
	case line := <-lines:
		return line
	case <-time.After(patience):
		return "nothing"
	}
}

const (
	soon  = 20 * time.Second       // for what must come
	never = 200 * time.Millisecond // for what must not; it would take microseconds
)

func TestProxy(t *testing.T) {
	server, heard := echo(t)
	proxy := OwnProxy(t, server)
	c := call(t, proxy.Address())
	c.say(t, "a")
	require.Equal(t, "a", next(c.answers, soon))
	require.Equal(t, "a", next(heard, soon))

	proxy.Silence(ToClient)
	c.say(t, "b")
	require.Equal(t, "b", next(heard, soon))
	require.Equal(t, "nothing", next(c.answers, never))
	proxy.Heal()
	require.Equal(t, "b", next(c.answers, soon))

	proxy.Silence(ToServer)
	c.say(t, "c")
	require.Equal(t, "nothing", next(heard, never))
	proxy.Heal()
	require.Equal(t, "c", next(heard, soon))
	require.Equal(t, "c", next(c.answers, soon))

	// Half-open: the server doesn't see the client go, nor a new client its server.
	quiet := call(t, proxy.Address())
	quiet.say(t, "q")
	require.Equal(t, "q", next(heard, soon))
	proxy.CutOff()
	require.NoError(t, quiet.Close())
	c.say(t, "d")
	require.NoError(t, c.Close())
	require.Equal(t, "nothing", next(heard, never))
	c = call(t, proxy.Address())
	c.say(t, "e")
	require.Equal(t, "nothing", next(heard, never))
	proxy.Heal()
	require.ElementsMatch(t, []string{"end", "d", "end", "e"}, []string{next(heard, soon), next(heard, soon), next(heard, soon), next(heard, soon)})
	require.Equal(t, "e", next(c.answers, soon))

	// What is held back is lost in a reset.
	proxy.Silence(ToServer)
	c.say(t, "f")
	require.Equal(t, "nothing", next(heard, never))
	proxy.Reset()
	require.Equal(t, "RST", next(c.answers, soon))
	require.Equal(t, "end", next(heard, soon))

	c = call(t, proxy.Address())
	c.say(t, "g")
	require.Equal(t, "g", next(heard, soon))
	require.Equal(t, "g", next(c.answers, soon))
	require.NoError(t, proxy.Disable())
	require.Equal(t, "EOF", next(c.answers, soon))
	require.Equal(t, "end", next(heard, soon))
	_, err := new(net.Dialer).DialContext(t.Context(), "tcp", proxy.Address())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.NoError(t, proxy.Enable(t.Context()))
	c = call(t, proxy.Address())

	other, heardByOther := echo(t)
	proxy.Point(other)
	require.Equal(t, "EOF", next(c.answers, soon))
	c = call(t, proxy.Address())
	c.say(t, "h")
	require.Equal(t, "h", next(heardByOther, soon))
}

func TestProxyLatency(t *testing.T) {
	server, _ := echo(t)
	proxy := OwnProxy(t, server)
	c := call(t, proxy.Address())
	const delay = 100 * time.Millisecond
	proxy.Latency(delay, 0)
	began := time.Now()
	c.say(t, "a")
	require.Equal(t, "a", next(c.answers, soon))
	require.GreaterOrEqual(t, time.Since(began), 2*delay, "it is late both ways")

	proxy.Latency(time.Hour, time.Minute)
	c.say(t, "b")
	require.Equal(t, "nothing", next(c.answers, never))
	proxy.Heal()
	require.Equal(t, "b", next(c.answers, soon))
}

func TestProxyBeforeKafka(t *testing.T) {
	proxy := OwnProxy(t, "127.0.0.1:1")
	broker := OwnKafka(t, KafkaOptions{Properties: map[string]string{"advertised.listeners": "PLAINTEXT://" + proxy.Address()}})
	proxy.Point(broker.Brokers()[0])
	topic := Name(t)
	broker.CreateTopic(t, topic, 1, nil)
	produceAndConsume(t, []string{proxy.Address()}, topic, "value")

	client := newClient(t, []string{proxy.Address()})
	require.NoError(t, client.Ping(t.Context()))
	proxy.CutOff()
	pinged := make(chan error, 1)
	go func() { pinged <- client.Ping(t.Context()) }()
	select {
	case err := <-pinged:
		t.Fatalf("a broker answers that is cut off: %v", err)
	case <-time.After(never):
	}
	proxy.Heal()
	require.NoError(t, <-pinged)
}

// TestProxyLosesNothing sends more than all buffers hold to a server that doesn't read, through a silence that comes and goes.
func TestProxyLosesNothing(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789\n"), 3<<20)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	proxy := OwnProxy(t, listener.Addr().String())
	client, err := new(net.Dialer).DialContext(t.Context(), "tcp", proxy.Address())
	require.NoError(t, err)
	sent := make(chan error, 1)
	go func() {
		_, err := client.Write(data)
		sent <- errors.Join(err, client.Close())
	}()
	server, err := listener.Accept()
	require.NoError(t, err)
	for range 3 {
		proxy.CutOff()
		proxy.Heal()
	}
	proxy.Silence(ToServer)
	select {
	case err := <-sent:
		t.Fatalf("it is sent although nothing takes it: %v", err)
	case <-time.After(never):
	}
	proxy.Heal()
	got, err := io.ReadAll(server)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got), "what arrives is what was sent")
	require.NoError(t, <-sent)
	require.NoError(t, server.Close())
}

// TestProxyLeavesNoGoroutine breaks connections with data on its way in both directions.
func TestProxyLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	flood, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	pump := func(connection net.Conn) {
		go func() {
			data := make([]byte, 1<<16)
			for {
				if _, err := connection.Write(data); err != nil {
					_ = connection.Close() // it is broken
					return
				}
			}
		}()
	}
	go func() {
		for {
			connection, err := flood.Accept()
			if err != nil {
				return
			}
			pump(connection)
		}
	}()
	proxy, err := StartProxy(t.Context(), flood.Addr().String())
	require.NoError(t, err)
	for range 5 {
		for range 4 {
			client, err := new(net.Dialer).DialContext(t.Context(), "tcp", proxy.Address())
			require.NoError(t, err)
			pump(client)
			_, err = io.CopyN(io.Discard, client, 1<<18)
			require.NoError(t, err)
		}
		proxy.Silence(ToServer)
		proxy.Reset()
	}
	proxy.CutOff()
	require.NoError(t, proxy.Close())
	require.NoError(t, flood.Close())
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, poll(ctx, 10*time.Millisecond, func() error {
		if now := runtime.NumGoroutine(); now > before {
			return errors.New("goroutines are left")
		}
		return nil
	}))
}
