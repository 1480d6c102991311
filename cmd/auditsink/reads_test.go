package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// reader is a worker that only answers: there are no brokers for it.
func reader(databaseURL string) settings {
	return settings{
		"KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_TOPICS": "none", "POSTGRES_URL": databaseURL, "HTTP_ADDR": "127.0.0.1:0", "POOL_RETRY_DELAY": "50ms", "QUERY_TIMEOUT": "2s",
	}
}

// ask asks a worker with a token, none where that is empty.
func (p *process) ask(t *testing.T, method, token, path, body string) (status int, text string) {
	t.Helper()
	base := p.says(t, `"metrics":"(http://[^"]+)/metrics"`)
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	require.NoError(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	all, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	return resp.StatusCode, string(all)
}

// someEvents adds five events of each organization, of today.
func someEvents(t *testing.T, databaseURL string, organizations ...string) {
	t.Helper()
	for _, o := range organizations {
		statement(t, databaseURL, `INSERT INTO audit_log (timestamp, action, status, organization_id, principal_id)
			SELECT date_trunc('second', now()), '=' || $1 || i, 'success', $1, 'p' || i FROM generate_series(1, 5) i`, o)
	}
}

// TestReadsWaitForNobody: /v1 is there before the database is, says so, and answers as soon as it can, without the worker being started again.
func TestReadsWaitForNobody(t *testing.T) {
	t.Parallel()
	server := testkit.OwnPostgres(t, testkit.PostgresOptions{Version: 15})
	databaseURL, err := server.CreateDatabase(t.Context())
	require.NoError(t, err)
	succeed(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "up")
	someEvents(t, databaseURL, "A")
	require.NoError(t, server.Stop())
	p := start(t, reader(databaseURL), "run")
	for _, path := range []string{"/v1/events", "/v1/events/1", "/v1/events?format=csv"} {
		status, body := p.ask(t, http.MethodGet, "", path, "")
		require.Equal(t, http.StatusServiceUnavailable, status, body)
		require.Contains(t, body, "the database isn't there")
		require.NotContains(t, body, "127.0.0.1", "whoever asks learns nothing of where it is")
	}
	status, _ := p.ask(t, http.MethodGet, "", "/v1/openapi.json", "")
	require.Equal(t, http.StatusOK, status)
	require.NoError(t, server.Restart(t.Context()))
	eventually(t, "events are read", func() bool {
		status, body := p.ask(t, http.MethodGet, "", "/v1/events", "")
		return status == http.StatusOK && strings.Contains(body, `"=A1"`)
	})
}

// TestReadsOfAWorker: by tokens that the command makes, each to its own; a change of their file, and of the log's level, acts at once; reads have their own, bounded connections.
func TestReadsOfAWorker(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 15)
	succeed(t, settings{"POSTGRES_URL": databaseURL}, "migrate", "up")
	someEvents(t, databaseURL, "A", "B, North")
	file := filepath.Join(t.TempDir(), "tokens")
	token := func(args ...string) (token, line string) {
		var made struct{ Token, Line string }
		require.NoError(t, json.Unmarshal([]byte(succeed(t, settings{}, append([]string{"query", "token", "--json"}, args...)...)), &made))
		return made.Token, made.Line
	}
	north, lineNorth := token("--name", "north", "--organization", "B, North")
	everything, lineEverything := token("--name", "ops", "--all")
	require.NoError(t, os.WriteFile(file, []byte(lineNorth+"\n"+lineEverything+"\n"), 0o600))

	s := reader(databaseURL).with(settings{"TOKENS_FILE": file, "QUERY_MAX_CONNS": "1", "QUERY_TIMEOUT": "300ms", "LOG_LEVEL": "warn"})
	p := start(t, s.with(settings{"LOG_LEVEL": "info"}), "run")
	status, body := p.ask(t, http.MethodGet, "", "/v1/events", "")
	require.Equal(t, http.StatusUnauthorized, status, body)
	eventually(t, "events are read", func() bool {
		status, body = p.ask(t, http.MethodGet, north, "/v1/events", "")
		return status == http.StatusOK
	})
	require.Equal(t, 5, strings.Count(body, `"organizationId":"B, North"`))
	require.NotContains(t, body, `"organizationId":"A"`)
	_, body = p.ask(t, http.MethodGet, everything, "/v1/events?format=csv", "")
	require.Equal(t, 11, strings.Count(body, "\r\n"))
	require.Contains(t, body, `"'=A1"`)

	// The settings act.
	require.EqualValues(t, 1, number(t, databaseURL, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'auditsink reads'`))
	_, scraped := p.get(t, "/metrics")
	require.Contains(t, scraped, `auditsink_query_pool_connections{state="max"} 1`)
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), `BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	status, body = p.ask(t, http.MethodGet, north, "/v1/events?action=a", "")
	require.Equal(t, http.StatusGatewayTimeout, status, body)
	require.NoError(t, conn.Close(t.Context()))

	// The log's level, by whom it was changed.
	status, _ = p.ask(t, http.MethodPut, north, "/v1/log-level", `{"level":"error"}`)
	require.Equal(t, http.StatusForbidden, status)
	status, body = p.ask(t, http.MethodPut, everything, "/v1/log-level", `{"level":"debug"}`)
	require.Equal(t, http.StatusOK, status, body)
	p.says(t, `"the level of the log changes","from":"info","to":"debug","token":"(ops)"`)

	// A token that was removed stops working; a mistake is told, and takes nothing from anybody.
	require.NoError(t, os.WriteFile(file, []byte(lineEverything+"\n"), 0o600))
	eventually(t, "the token stops working", func() bool {
		status, _ = p.ask(t, http.MethodGet, north, "/v1/events", "")
		return status == http.StatusUnauthorized
	})
	require.NoError(t, os.WriteFile(file, []byte(everything+"\n"), 0o600))
	p.says(t, `"level":"error".*the file of the tokens \(AUDITSINK_TOKENS_FILE\) can't be used.*line 1`)
	require.NotContains(t, p.errs.String(), everything)
	status, _ = p.ask(t, http.MethodGet, everything, "/v1/events", "")
	require.Equal(t, http.StatusOK, status)
	require.NotContains(t, p.errs.String(), "=A1", "no event content in the log")

	// With such a file no worker starts.
	for _, args := range [][]string{{"run"}, {"config", "check"}} {
		code, out, errs := execute(t, s, args...)
		require.Equal(t, exitUsage, code, out)
		require.Contains(t, errs, "AUDITSINK_TOKENS_FILE")
		require.Contains(t, errs, "line 1")
		require.NotContains(t, errs, everything)
	}
}

// TestQuery: what the command shows is what the API answers, by the same parameters.
func TestQuery(t *testing.T) {
	t.Parallel()
	databaseURL := testkit.Postgres(t, 15)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	someEvents(t, databaseURL, "A", "B")
	statement(t, databaseURL, `INSERT INTO audit_log (timestamp, action, status) VALUES (date_trunc('second', now()), E'\x1b[31mred', 'failure')`)

	type page struct {
		From, To string
		Events   []struct {
			ID             int64
			Action         string
			OrganizationID string
			Timestamp      string
		}
		Next  *string
		Count *struct {
			Count int
			Exact bool
		}
	}
	ask := func(args ...string) (p page) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(succeed(t, s, append([]string{"query", "--json"}, args...)...)), &p))
		return p
	}
	all := ask("--count")
	require.Len(t, all.Events, 11)
	require.Equal(t, 11, all.Count.Count)
	require.True(t, all.Count.Exact)
	require.Nil(t, all.Next)
	require.Len(t, ask("--organization-id", "A", "--status", "success", "--from", "2h ago", "--to", "2100-01-01T00:00:00Z").Events, 5)
	require.Len(t, ask("--organization", "A").Events, 5)
	require.Len(t, ask("--organization", "A", "--organization", "B").Events, 10)
	require.Len(t, ask("--organization", "A", "--principal-id", "p3").Events, 1)
	require.Empty(t, ask("--organization", "A", "--organization-id", "B").Events)
	require.Empty(t, ask("--to", "1h").Events)
	first := ask("--limit", "4", "--order", "asc", "--organization", "A")
	second := ask("--limit", "4", "--order", "asc", "--organization", "A", "--from", first.From, "--to", first.To, "--cursor", *first.Next)
	require.Len(t, first.Events, 4)
	require.Len(t, second.Events, 1)
	require.Greater(t, second.Events[0].ID, first.Events[3].ID)

	table := succeed(t, s, "query", "--limit", "11", "--count")
	require.Regexp(t, `(?m)^ID +TIMESTAMP +ORGANIZATION +PRINCIPAL +ACTION`, table)
	require.Regexp(t, `(?m)^\d+ +\S+Z +A +p3 +=A3 +success +- +INTERNAL +-$`, table)
	require.Contains(t, table, "\n11 events from ")
	require.NotContains(t, table, "\x1b", "a terminal obeys no event")
	require.Regexp(t, `more follow: --from \S+ --to \S+ --cursor \S+\n$`, succeed(t, s, "query", "--limit", "3"))

	lines := succeed(t, s, "query", "--format", "ndjson", "--organization", "A")
	require.Equal(t, 5, strings.Count(lines, "\n"))
	require.Contains(t, lines, `"action":"=A1"`)
	sheet := succeed(t, s, "query", "--format", "csv", "--limit", "2", "--organization", "A")
	require.Equal(t, 3, strings.Count(sheet, "\r\n"))
	require.Contains(t, sheet, `,"'=A`)

	e := all.Events[0]
	id := fmt.Sprint(e.ID)
	for _, args := range [][]string{{}, {"--timestamp", e.Timestamp}} {
		for _, format := range []string{"table", "json", "ndjson", "csv"} {
			require.Contains(t, succeed(t, s, append([]string{"query", "--id", id, "--format", format}, args...)...), id)
		}
	}
	for _, args := range [][]string{{"--id", "123456789"}, {"--id", id, "--organization", "nobody"}, {"--id", id, "--timestamp", "2020-01-01T00:00:00Z"}} {
		code, out, errs := execute(t, s, append([]string{"query"}, args...)...)
		require.Equal(t, exitFailed, code, errs)
		require.Empty(t, out)
		require.Contains(t, errs, "no such event")
	}
	for _, c := range []struct{ want, args string }{
		{"--status", "--status fine"},
		{"--hash", "--hash abc"},
		{"--limit", "--limit 0"},
		{"--limit", "--limit 1001"},
		{"--cursor", "--cursor abc"},
		{"--cursor", "--cursor abc --format csv"},
		{"--count", "--count --format csv"},
		{"--from", "--from yesterday"},
		{"--from", "--from 1h --to 2h"},
		{"--format", "--format xml"},
		{"--format", "--format csv --json"},
		{"--id", "--id 1 --action a"},
		{"--timestamp", "--timestamp 2020-01-01T00:00:00Z"},
		{"--timestamp", "--id 1 --timestamp now"},
		{"--timestamp", "--id 1 --timestamp="},
		{"--organization", "--organization="},
		{"--organization", "--organization A --organization="},
		{"--all", "token --name n"},
		{"--all", "token --name n --all --organization A"},
		{"name", "token --all"},
		{"organization", "token --name n --organization="},
	} {
		code, out, errs := execute(t, s, append([]string{"query"}, strings.Fields(c.args)...)...)
		require.Equal(t, exitUsage, code, "%s: %s", c.args, errs)
		require.Empty(t, out, c.args)
		require.Contains(t, errs, c.want, c.args)
	}
}
