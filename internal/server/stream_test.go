package server_test

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"auditsink/internal/postgres"
	"auditsink/internal/query"
	"auditsink/internal/server"
)

// TestExports: every event of the caller's once, in order, in either format; a limit holds.
func TestExports(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 2500) // several chunks
	b.insert("B", 30)
	for _, c := range []struct {
		token string
		want  int
	}{{tokenA, 2500}, {tokenB, 30}, {tokenAll, 2530}, {tokenNone, 0}} {
		a := b.get(c.token, b.events("format", "ndjson", "order", "asc"))
		require.Equal(t, http.StatusOK, a.status)
		require.Equal(t, `attachment; filename="audit-events.ndjson"`, a.header.Get("Content-Disposition"))
		seen := map[int64]query.Event{}
		last := ""
		for line := range strings.Lines(a.body) {
			e := decode[query.Event](t, line)
			require.LessOrEqual(t, last, e.Timestamp[:23])
			last = e.Timestamp[:23]
			seen[e.ID] = e
		}
		require.Len(t, seen, c.want)
		require.Equal(t, c.want, strings.Count(a.body, "\n"))

		a = b.get(c.token, b.events("format", "csv"))
		records, err := csv.NewReader(strings.NewReader(a.body)).ReadAll()
		require.NoError(t, err)
		require.Len(t, records, c.want+1)
		require.Equal(t, "id,timestamp", strings.Join(records[0][:2], ","))
	}
	for _, limit := range []string{"1", "999", "1000", "1001", "2500", "3000"} {
		a := b.get(tokenA, b.events("format", "ndjson", "limit", limit))
		require.Equal(t, map[string]int{"1": 1, "999": 999, "1000": 1000, "1001": 1001, "2500": 2500, "3000": 2500}[limit], strings.Count(a.body, "\n"), limit)
	}
	for _, entry := range b.log.FilterMessage("exported").All() {
		require.Contains(t, []any{"a", "b", "all", "none"}, entry.ContextMap()["token"])
	}
	require.EqualValues(t, 2530, b.log.FilterMessage("exported").FilterField(zap.String("token", "all")).All()[0].ContextMap()["events"])
}

// TestExportInjection: what an event holds doesn't run in a spreadsheet, and is unaltered in NDJSON.
func TestExportInjection(t *testing.T) {
	b := newBed(t, setup{})
	const formula = "=cmd|' /C calc'!A0"
	b.exec(`INSERT INTO audit_log (timestamp, action, status, organization_id, principal_id, details) VALUES ($1, $2, 'success', 'A', $3, $4)`,
		b.from, formula, "\t@SUM(1)", `{"n": 1.10, "big": 123456789012345678901234567890, "s": "=1<\u2028"}`)
	a := b.get(tokenA, b.events("format", "csv"))
	require.Contains(t, a.body, `,"'`+formula+`",`)
	require.Contains(t, a.body, `,"'`+"\t"+`@SUM(1)",`)
	a = b.get(tokenA, b.events("format", "ndjson"))
	require.Contains(t, a.body, `"action":"`+formula+`"`)
	require.Contains(t, a.body, `"n":1.10`)
	require.Contains(t, a.body, `123456789012345678901234567890`)
	require.Contains(t, a.body, `"=1<`)
}

// TestExportInBoundedMemory: half a million events pass, and the memory in use doesn't grow with them.
func TestExportInBoundedMemory(t *testing.T) {
	const events = 500_000
	b := newBed(t, setup{})
	// With the indexes alone that an export needs, since all of them take half a minute.
	b.exec(`DO $$ DECLARE i text; BEGIN FOR i IN SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'audit_log'::regclass AND NOT indisprimary
		AND indexrelid::regclass::text NOT IN ('audit_log_timestamp_idx') LOOP EXECUTE 'DROP INDEX ' || i; END LOOP; END $$`)
	b.insert("A", events)
	b.exec(`ANALYZE audit_log`)
	require.Equal(t, &query.Count{Count: 100_000}, b.page(tokenA, b.events("limit", "1", "count", "true")).Count, "no more are counted")
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, highest := heap(), uint64(0)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(b.request(http.MethodGet, tokenA, b.events("format", "ndjson"), nil))
	require.NoError(t, err)
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	n, size := 0, 0
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			break
		}
		require.NoError(t, err)
		size += len(line)
		if n++; n%50_000 == 0 {
			highest = max(highest, heap())
		}
	}
	require.NoError(t, resp.Body.Close())
	require.Equal(t, events, n)
	require.Greater(t, size, 250<<20, "it would show")
	grown := int64(highest) - int64(before)
	t.Logf("%d events, %d MiB, the heap grew by %d KiB", n, size>>20, grown>>10)
	require.Less(t, grown, int64(16<<20))
}

// startExport begins an export that is larger than what the network holds, and returns the connection, from which nothing was read.
func startExport(t *testing.T, b *bed) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.server.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // the server has broken it
	_, err = io.WriteString(conn, "GET "+b.events("format", "ndjson")+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+tokenA+"\r\n\r\n")
	require.NoError(t, err)
	return conn
}

// large adds events that are larger together than what the network holds, so that a client that doesn't read holds up an export.
func (b *bed) large() {
	b.Helper()
	b.insert("A", 3000)
	b.exec(`UPDATE audit_log SET outcome_description = repeat('x', 10000)`)
}

// broken requires that an answer ends before its end.
func broken(t *testing.T, conn net.Conn) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	_, err = io.Copy(io.Discard, resp.Body)
	require.Error(t, err)
	var reset *net.OpError
	require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &reset), "%v", err)
}

// TestStalledClient: who stops reading is cut off, and what they held is free again, also the only place there is for an export.
func TestStalledClient(t *testing.T) {
	b := newBed(t, setup{stall: 200 * time.Millisecond, server: func(o *server.Options) { o.Exports = 1 }, pool: func(o *postgres.Options) { o.MaxConns = 1 }})
	b.large()
	conn := startExport(t, b)
	eventually(t, "the export is broken off", func() bool { return b.log.FilterMessage("an export was broken off").Len() == 1 })
	require.Contains(t, b.log.FilterMessage("an export was broken off").All()[0].ContextMap()["error"], "i/o timeout")
	broken(t, conn)
	require.Equal(t, 3000, strings.Count(b.get(tokenA, b.events("format", "ndjson")).body, "\n"))
}

// TestExportsAtOnce: no more than so many; a page is answered meanwhile, though there is a single connection.
func TestExportsAtOnce(t *testing.T) {
	b := newBed(t, setup{server: func(o *server.Options) { o.Exports = 1 }, pool: func(o *postgres.Options) { o.MaxConns = 1 }})
	b.large()
	conn := startExport(t, b)
	_, err := conn.Read(make([]byte, 1))
	require.NoError(t, err)
	_, header := b.refused(http.StatusServiceUnavailable, b.request(http.MethodGet, tokenA, b.events("format", "csv"), nil))
	require.Equal(t, "10", header.Get("Retry-After"))
	require.Len(t, b.page(tokenA, b.events("limit", "3")).Events, 3)
	require.NoError(t, conn.Close())
	eventually(t, "the place is free", func() bool { return b.get(tokenA, b.events("format", "csv", "limit", "1")).status == http.StatusOK })
}

// TestExportThatFails: before a byte of it is sent it is a problem as any other; in the middle the answer breaks off, and never ends as if it were whole.
func TestExportThatFails(t *testing.T) {
	b := newBed(t, setup{reader: func(o *query.Options) { o.Timeout = 300 * time.Millisecond }})
	b.large()
	unlock := b.lock()
	b.refused(http.StatusGatewayTimeout, b.request(http.MethodGet, tokenA, b.events("format", "csv"), nil))
	unlock()

	b = newBed(t, setup{url: b.url, reader: func(o *query.Options) { o.Timeout = 3 * time.Second }})
	conn := startExport(t, b)
	reader := bufio.NewReader(conn)
	_, err := reader.Peek(1)
	require.NoError(t, err)
	unlock = b.lock() // no lock is held while the client is waited for
	defer unlock()
	broken(t, &peeked{conn, reader})
	said := b.log.FilterMessage("an export was broken off").All()
	require.Len(t, said, 1)
	require.Contains(t, said[0].ContextMap()["error"], "AUDITSINK_QUERY_TIMEOUT")
}

// peeked is a connection of which something was read ahead.
type peeked struct {
	net.Conn
	reader *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.reader.Read(b) }

// TestClientGone: a query that nobody waits for is cancelled.
func TestClientGone(t *testing.T) {
	b := newBed(t, setup{reader: func(o *query.Options) { o.Timeout = time.Hour }})
	unlock := b.lock()
	defer unlock()
	waiting := func() int64 {
		return b.value(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	}
	for _, path := range []string{b.events(), b.events("format", "csv"), b.events("count", "true"), "/v1/events/1"} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			resp, err := http.DefaultClient.Do(b.request(http.MethodGet, tokenA, path, nil).WithContext(ctx))
			if err == nil {
				err = errors.Join(errors.New("answered "+resp.Status), resp.Body.Close())
			}
			done <- err
		}()
		eventually(t, "it waits for the lock", func() bool { return waiting() == 1 })
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		eventually(t, "it is cancelled", func() bool { return waiting() == 0 })
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestTooManyReaders: who gets no connection in time is asked to come back; not so who waits for a slow answer.
func TestTooManyReaders(t *testing.T) {
	b := newBed(t, setup{pool: func(o *postgres.Options) { o.MaxConns, o.AcquireTimeout = 1, 100*time.Millisecond }})
	var held interface{ Release() }
	eventually(t, "a connection", func() bool { // which is made meanwhile, longer than the timeout perhaps
		conn, err := b.pool.Acquire(t.Context())
		held = conn
		return err == nil
	})
	p, header := b.refused(http.StatusServiceUnavailable, b.request(http.MethodGet, tokenA, b.events(), nil))
	require.Contains(t, p.Detail, "too many")
	require.Equal(t, "1", header.Get("Retry-After"))
	held.Release()
	require.Empty(t, b.page(tokenA, b.events()).Events)
}

// TestBodyThatNeverComes: whoever announces a body and doesn't send it is answered, and cut off, on every path.
func TestBodyThatNeverComes(t *testing.T) {
	b := newBed(t, setup{})
	var group errgroup.Group
	for _, head := range []string{
		"PUT /v1/log-level HTTP/1.1\r\nAuthorization: Bearer " + tokenAll, "PUT /v1/log-level HTTP/1.1\r\nAuthorization: Bearer unknown",
		"GET /metrics HTTP/1.1", "GET /health HTTP/1.1", "GET /nothing HTTP/1.1", "POST /readyz HTTP/1.1",
	} {
		group.Go(func() error {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.server.Addr())
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // the server has closed it
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			if _, err = io.WriteString(conn, head+"\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"); err != nil {
				return err
			}
			if _, err = io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("the connection of %q stays open", head)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// TestStalledScrape: who asks for metrics and doesn't read them is cut off too.
func TestStalledScrape(t *testing.T) {
	failed := make(chan error, 1)
	b := newBed(t, setup{stall: 200 * time.Millisecond, server: func(o *server.Options) {
		o.Scrape = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, err := w.Write(make([]byte, 64<<20)) // more than the network holds
			failed <- err
		})
	}})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.server.Addr())
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the server has broken it
	_, err = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	select {
	case err := <-failed:
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	case <-time.After(patience):
		t.Fatal("it is still waited for")
	}
}

// TestLargePage: an event of a megabyte, many times, is a page as any other.
func TestLargePage(t *testing.T) {
	b := newBed(t, setup{})
	b.insert("A", 20)
	b.exec(`UPDATE audit_log SET details = jsonb_build_object('x', repeat('y', 1000000))`)
	var events int
	for path := b.events("limit", "1000"); path != ""; {
		a := b.get(tokenA, path)
		p := decode[page](t, a.body)
		for _, e := range p.Events {
			var details struct{ X string }
			require.NoError(t, json.Unmarshal(e.Details, &details))
			require.Len(t, details.X, 1000000)
		}
		events += len(p.Events)
		path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	require.Equal(t, 20, events)
}
