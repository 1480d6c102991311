package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// brokenEvents are the corpus, and the events of the golden file with the signature that they have of the key "secret".
func brokenEvents(t *testing.T) (values [][]byte, signed int) {
	t.Helper()
	var corpus []struct{ Value []byte }
	text, err := os.ReadFile("../../internal/event/testdata/events.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &corpus))
	for _, c := range corpus {
		values = append(values, c.Value)
	}
	var vectors []struct {
		Event     []byte
		Signature string `json:"hmac_sha256_key_secret"`
	}
	text, err = os.ReadFile("../../hashing/testdata/event_hash.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &vectors))
	for _, v := range vectors {
		values = append(values, []byte(`{"signature":"`+v.Signature+`",`+string(v.Event[1:])))
	}
	return values, len(vectors)
}

// column is the first column of a query.
func column[T any](t *testing.T, databaseURL, sql string, args ...any) []T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing was written
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return all
}

// redriveResult is what redrive --json prints.
type redriveResult struct {
	DryRun      bool           `json:"dry_run"`
	Taken       int            `json:"taken"`
	Redriven    int            `json:"redriven"`
	Quarantined int            `json:"quarantined"`
	ByReason    map[string]int `json:"quarantined_by_reason"`
	Elsewhere   *int           `json:"elsewhere"`
}

func redriveJSON(t *testing.T, s settings, args ...string) (r redriveResult) {
	t.Helper()
	out := succeed(t, s, append([]string{"quarantine", "redrive", "--json"}, args...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &r), out)
	require.NotNil(t, r.Elsewhere)
	require.NotNil(t, r.ByReason)
	return r
}

// TestQuarantine: a worker with a wrong signature key quarantines what was signed; an operator looks at it, mends the key and takes it again.
func TestQuarantine(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres%d", version), func(t *testing.T) {
			broker, databaseURL, topic := testkit.Kafka(t), testkit.Postgres(t, version), testkit.Name(t)
			values, signed := brokenEvents(t)
			publishAt(t, broker, topic, recorded, values)
			s := workerSettings(broker, topic, databaseURL)
			wrong, right := s.with(settings{"EVENT_SIGNATURE_KEY": "wrong"}), s.with(settings{"EVENT_SIGNATURE_KEY": "secret"})
			succeed(t, s, "migrate", "up")
			require.Regexp(t, `^ID +LANE .*DETAIL\n0 records\n$`, succeed(t, s, "quarantine", "list"))
			require.JSONEq(t, `{"records":[],"shown":0,"total":0,"by_reason":{},"by_state":{}}`, succeed(t, s, "quarantine", "list", "--json"))
			p := start(t, wrong, "run")
			eventually(t, "the position", func() bool {
				return number(t, databaseURL, `SELECT coalesce(sum(next_offset), 0) FROM audit_lane`) == int64(len(values))
			})
			p.stop(t)
			rows := int(number(t, databaseURL, `SELECT count(*) FROM audit_log`))
			all := len(values) - rows
			require.EqualValues(t, all, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine`))
			mismatches := int(number(t, databaseURL, `SELECT count(*) FROM audit_quarantine WHERE reason = 'signature_mismatch'`))
			require.GreaterOrEqual(t, mismatches, signed)
			require.Greater(t, all, mismatches, "some break other rules")
			require.Positive(t, rows)

			listQuarantine(t, s, topic, all, mismatches)
			showQuarantine(t, s, databaseURL, topic, values)

			// Without a choice, without the key, and as a trial.
			code, out, errs := execute(t, right, "quarantine", "redrive")
			require.Equal(t, 2, code)
			require.Empty(t, out)
			require.Contains(t, errs, "--all")
			code, out, errs = execute(t, s, "quarantine", "redrive", "--reason", "signature_mismatch")
			require.Zero(t, code)
			require.Equal(t, fmt.Sprintf("%d records taken, 0 redriven, %[1]d still quarantined: signature_mismatch %[1]d\n", mismatches), out)
			require.Contains(t, errs, "AUDITSINK_EVENT_SIGNATURE_KEY is not set")
			trial := redriveJSON(t, right, "--all", "--dry-run")
			require.True(t, trial.DryRun)
			require.Equal(t, []int{all, mismatches, all - mismatches}, []int{trial.Taken, trial.Redriven, trial.Quarantined})
			require.Equal(t, rows, int(number(t, databaseURL, `SELECT count(*) FROM audit_log`)))

			// With it.
			first := redriveJSON(t, right, "--reason", "signature_mismatch", "--limit", "7", "--reason-note", "key mended")
			require.Equal(t, []int{7, 7, 0}, []int{first.Taken, first.Redriven, first.Quarantined})
			rest := redriveJSON(t, right, "--topic", topic, "--since", "1h")
			require.Equal(t, []int{all - 7, mismatches - 7, all - mismatches}, []int{rest.Taken, rest.Redriven, rest.Quarantined})
			require.NotContains(t, rest.ByReason, "signature_mismatch")
			require.Zero(t, redriveJSON(t, right, "--all").Redriven)
			require.EqualValues(t, rows+mismatches, number(t, databaseURL, `SELECT count(DISTINCT (lane_id, lane_offset)) FROM audit_log`))
			require.Contains(t, succeed(t, s, "verify"), fmt.Sprintf("%d rows verified", rows+mismatches))
			me := column[string](t, databaseURL, `SELECT DISTINCT client FROM audit_lane_event WHERE kind = 'redriven' AND reason = 'key mended'`)
			require.Len(t, me, 1)
			require.Regexp(t, `^\S+@\S+/\d+$`, me[0])

			discardQuarantine(t, s, databaseURL, all, mismatches)
		})
	}
}

// listQuarantine looks at the lists of a database with so many new records.
func listQuarantine(t *testing.T, s settings, topic string, all, mismatches int) {
	t.Helper()
	out := succeed(t, s, "quarantine", "list")
	require.Regexp(t, `(?m)^\d+ +\d+ +`+topic+`/0 +\d+ +new +signature_mismatch +2026-11-23T12:00:00.000Z +\S+Z +\d+ +\S.*$`, out)
	require.Regexp(t, fmt.Sprintf(`(?m)^%d records: signature_mismatch %d, `, all, mismatches), out)
	require.Contains(t, out, "only the newest 100 are shown: raise --limit")
	requireNoContent(t, out)
	out = succeed(t, s, "quarantine", "list", "--limit", "0", "--state", "all")
	require.NotContains(t, out, "only the newest")
	require.Equal(t, all+2, strings.Count(out, "\n"))
	requireNoContent(t, out)

	var list struct {
		Records []map[string]any
		Shown   int
		Total   int
		Reasons map[string]int `json:"by_reason"`
		States  map[string]int `json:"by_state"`
	}
	out = succeed(t, s, "quarantine", "list", "--json", "--limit", "3", "--reason", "signature_mismatch", "--reason", "empty")
	require.NoError(t, json.Unmarshal([]byte(out), &list), out)
	requireNoContent(t, out)
	require.Len(t, list.Records, 3)
	require.Equal(t, []int{3, mismatches}, []int{list.Shown, list.Reasons["signature_mismatch"]})
	require.Equal(t, list.Total, list.States["new"])
	var names []string
	for name := range list.Records[0] {
		names = append(names, name)
	}
	require.ElementsMatch(t, []string{
		"id", "lane_id", "topic", "partition", "lane_offset", "state", "reason", "detail", "record_timestamp", "recorded_at", "value_bytes",
	}, names)
	require.Greater(t, list.Records[0]["id"], list.Records[1]["id"], "the newest first")

	for _, none := range [][]string{{"--state", "discarded"}, {"--until", "1h"}, {"--since", "2100-01-01T00:00:00Z"}, {"--topic", "other"}, {"--lane", "4711"}} {
		require.Contains(t, succeed(t, s, append([]string{"quarantine", "list"}, none...)...), "\n0 records\n", none)
	}
	for _, c := range []struct{ flags, says string }{
		{"--reason invalid", "signature_mismatch, rejected_by_database"},
		{"--state old", "new, redriven, discarded or all"},
		{"--since yesterday", "RFC 3339"},
		{"--since -2h", "RFC 3339"},
		{"--since 1h --until 2h", "not before"},
		{"--limit -1", "--limit"},
		{"--lane one", "--lane"},
		{"5", `"5"`},
	} {
		code, out, errs := execute(t, s, append([]string{"quarantine", "list"}, strings.Fields(c.flags)...)...)
		require.Equal(t, 2, code, c.flags)
		require.Empty(t, out)
		require.Contains(t, errs, c.says)
	}
}

// showQuarantine looks at single records.
func showQuarantine(t *testing.T, s settings, databaseURL, topic string, values [][]byte) {
	t.Helper()
	// What --value writes is what was published.
	odd := column[int](t, databaseURL, `SELECT min(lane_offset)::int FROM audit_quarantine WHERE reason = 'invalid_unicode'`)[0]
	for _, offset := range []int{15, odd, len(values) - 1} {
		id := column[int64](t, databaseURL, `SELECT id FROM audit_quarantine WHERE lane_offset = $1`, offset)[0]
		code, out, errs := execute(t, s, "quarantine", "show", strconv.FormatInt(id, 10), "--value")
		require.Zero(t, code, errs)
		require.Equal(t, string(values[offset]), out)
		require.Equal(t, values[offset] == nil, strings.Contains(errs, "tombstone"))
	}
	last := len(values) - 1
	id := strconv.FormatInt(column[int64](t, databaseURL, `SELECT id FROM audit_quarantine WHERE lane_offset = $1`, last)[0], 10)
	out := succeed(t, s, "quarantine", "show", id)
	require.Regexp(t, `(?m)^topic/partition +`+topic+`/0$`, out)
	require.Regexp(t, `(?m)^reason +signature_mismatch$`, out)
	require.Regexp(t, fmt.Sprintf(`(?m)^key +"%d"$`, last), out)
	require.Regexp(t, fmt.Sprintf(`(?m)^header +"n": base64 %s$`, regexpQuote(base64.StdEncoding.EncodeToString([]byte{0, byte(last)}))), out)
	type part struct {
		Text   *string
		Base64 []byte
	}
	type record struct {
		ID      int64
		Key     *part
		Value   *part
		Headers []struct{ Name, Value *part }
		TopicID string `json:"topic_id"`
		History []struct{ Kind, Reason, Client string }
		State   string
	}
	show := func(offset int) (r record) {
		id := column[int64](t, databaseURL, `SELECT id FROM audit_quarantine WHERE lane_offset = $1`, offset)[0]
		out := succeed(t, s, "quarantine", "show", "--json", strconv.FormatInt(id, 10))
		require.NoError(t, json.Unmarshal([]byte(out), &r), out)
		return r
	}
	r := show(last)
	require.Equal(t, strconv.Itoa(last), *r.Key.Text)
	require.Equal(t, "n", *r.Headers[0].Name.Text)
	require.Equal(t, []byte{0, byte(last)}, r.Headers[0].Value.Base64)
	require.NotNil(t, r.History)
	require.Empty(t, r.History)
	require.Equal(t, "new", r.State)
	require.Nil(t, show(15).Value, "a tombstone")
	require.Equal(t, string(values[last]), *r.Value.Text)
	require.Equal(t, values[odd], show(odd).Value.Base64)

	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"987654321", 1, "no quarantined record has the ID 987654321"},
		{"", 2, "arg"},
		{"1 2", 2, "arg"},
		{"first", 2, `"first" is no ID`},
		{id + " --json --value", 2, "--json or --value"},
	} {
		code, out, errs := execute(t, s, append([]string{"quarantine", "show"}, strings.Fields(c.args)...)...)
		require.Equal(t, c.code, code, c.args)
		require.Empty(t, out)
		require.Contains(t, errs, c.says)
	}
}

func regexpQuote(text string) string { return strings.NewReplacer("+", `\+`, "/", `\/`).Replace(text) }

// discardQuarantine discards what is left, of a database with so many records of which some are redriven.
func discardQuarantine(t *testing.T, s settings, databaseURL string, all, redriven int) {
	t.Helper()
	id := func(state string) string {
		return strconv.FormatInt(column[int64](t, databaseURL, `SELECT min(id) FROM audit_quarantine WHERE state = $1`, state)[0], 10)
	}
	before := number(t, databaseURL, `SELECT sum(octet_length(value)) FROM audit_quarantine`)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--all"}, 2, "--reason TEXT"},
		{[]string{"--all", "--reason", "  "}, 2, "--reason TEXT"},
		{[]string{"--reason", "a test"}, 2, "which records?"},
		{[]string{"--all", "--reason", "a test", id("new")}, 2, "which records?"},
		{[]string{"--all", "--reason", "empty"}, 2, "--quarantined-for empty"},
		{[]string{"--quarantined-for", "nothing", "--reason", "a test"}, 2, "no reason of a quarantine"},
		{[]string{id("new"), "987654321", "--reason", "a test"}, 1, "no quarantined record has the ID 987654321"},
		{[]string{id("new"), id("redriven"), "--reason", "a test"}, 1, "already redriven: record " + id("redriven") + "; nothing was done"},
	} {
		code, out, errs := execute(t, s, append([]string{"quarantine", "discard"}, c.args...)...)
		require.Equal(t, c.code, code, c.args)
		require.Empty(t, out)
		require.Contains(t, errs, c.says)
	}
	require.Zero(t, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine WHERE state = 'discarded'`))
	code, out, errs := execute(t, s, "quarantine", "redrive", id("redriven"))
	require.Zero(t, code, "a repeat is no failure")
	require.Equal(t, "0 records taken, 0 redriven, 0 still quarantined\n", out)
	require.Equal(t, "note: record "+id("redriven")+" was redriven before\n", errs)

	one := id("new")
	require.Equal(t, "1 records discarded\n", succeed(t, s, "quarantine", "discard", one, "--reason", "sent by mistake"))
	code, out, errs = execute(t, s, "quarantine", "discard", one, "--reason", "again")
	require.Zero(t, code)
	require.Equal(t, "0 records discarded\n", out)
	require.Equal(t, "note: record "+one+" was discarded before\n", errs)
	code, _, errs = execute(t, s, "quarantine", "redrive", one)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "already discarded")
	empty := number(t, databaseURL, `SELECT count(*) FROM audit_quarantine WHERE state = 'new' AND reason = 'empty'`)
	require.Positive(t, empty)
	require.JSONEq(t, fmt.Sprintf(`{"dry_run":false,"discarded":%d,"elsewhere":0}`, empty),
		succeed(t, s, "quarantine", "discard", "--quarantined-for", "empty", "--reason", "tombstones", "--json"))
	require.Regexp(t, `^dry run, nothing was changed: \d+ records discarded\n$`, succeed(t, s, "quarantine", "discard", "--all", "--dry-run", "--reason", "all of it"))
	succeed(t, s, "quarantine", "discard", "--all", "--reason", "all of it")
	require.EqualValues(t, all-redriven, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine WHERE state = 'discarded'`))
	require.EqualValues(t, all-redriven, number(t, databaseURL, `SELECT count(*) FROM audit_lane_event WHERE kind = 'discarded' AND reason IN ('sent by mistake', 'tombstones', 'all of it')`))
	require.Equal(t, before, number(t, databaseURL, `SELECT sum(octet_length(value)) FROM audit_quarantine`), "the bytes stay")
	require.Contains(t, succeed(t, s, "quarantine", "list"), "\n0 records\n")
	require.Regexp(t, fmt.Sprintf(`%d records: .*; redriven %d, discarded %d\n`, all, redriven, all-redriven), succeed(t, s, "quarantine", "list", "--state", "all"))
	require.Regexp(t, `(?m)^discarded +\S+Z by \S+@\S+/\d+ \(postgres\): sent by mistake$`, succeed(t, s, "quarantine", "show", one))
}

// tooLarge puts records into quarantine that were too large once.
func tooLarge(t *testing.T, databaseURL string, records int) {
	t.Helper()
	statement(t, databaseURL, `INSERT INTO audit_quarantine (lane_id, lane_offset, record_timestamp, value, reason, detail)
		SELECT 1, n, now(), convert_to(format('{"timestamp":"%s","action":"a","status":"success"}', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')), 'UTF8'),
		'too_large', 'then' FROM generate_series(1, $1) n`, records)
}

// TestRedriveInterrupted: one told to end in the middle, here while another session holds a record, tells what it has done.
func TestRedriveInterrupted(t *testing.T) {
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	tooLarge(t, databaseURL, 1200)
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // it only held a lock
	_, err = conn.Exec(t.Context(), `BEGIN; SELECT FROM audit_quarantine WHERE lane_offset = 700 FOR UPDATE`)
	require.NoError(t, err)
	p := start(t, s, "quarantine", "redrive", "--all")
	eventually(t, "it waits", func() bool {
		return number(t, databaseURL, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'auditsink' AND wait_event_type = 'Lock'`) == 1
	})
	p.terminate(t)
	require.Equal(t, 1, p.wait(t))
	require.Equal(t, "500 records taken, 500 redriven, 0 still quarantined\n", p.out.String())
	require.Contains(t, p.errs.String(), "interrupted; the same command does what is left")
	_, err = conn.Exec(t.Context(), `ROLLBACK`)
	require.NoError(t, err)
	require.Contains(t, succeed(t, s, "quarantine", "redrive", "--all"), "700 redriven")
	require.EqualValues(t, 1200, number(t, databaseURL, `SELECT count(DISTINCT lane_offset) FROM audit_log`))
	require.EqualValues(t, 1200, number(t, databaseURL, `SELECT count(*) FROM audit_log`))
}

// TestRedriveKilled kills a redrive at each step of a batch: what it left is taken by the next, once.
func TestRedriveKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auditsink")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "failpoints", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	databaseURL := testkit.Postgres(t, 18)
	s := settings{"POSTGRES_URL": databaseURL}
	succeed(t, s, "migrate", "up")
	const records = 2600 // some batches
	tooLarge(t, databaseURL, records)
	for i, at := range []string{"quarantine.copied=kill@1", "quarantine.moved=kill@1", "quarantine.committed=kill@1", "quarantine.copied=kill@2", "quarantine.moved=kill@2"} {
		before := number(t, databaseURL, `SELECT count(*) FROM audit_log`)
		cmd := exec.CommandContext(t.Context(), path, "quarantine", "redrive", "--all")
		cmd.Env = []string{"AUDITSINK_POSTGRES_URL=" + databaseURL, "FAILPOINT=" + at}
		require.Error(t, cmd.Run())
		status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
		require.True(t, ok)
		require.Equal(t, syscall.SIGKILL, status.Signal(), at)
		eventually(t, "its session is gone", func() bool {
			return number(t, databaseURL, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'auditsink'`) == 0
		})
		batches := []int64{0, 0, 1, 1, 1}[i]
		require.Equal(t, before+batches*500, number(t, databaseURL, `SELECT count(*) FROM audit_log`), at)
		require.Equal(t, before+batches*500, number(t, databaseURL, `SELECT count(*) FROM audit_quarantine WHERE state = 'redriven'`), at)
	}
	require.Equal(t, fmt.Sprintf("%d records taken, %[1]d redriven, 0 still quarantined\n", records-1500), succeed(t, s, "quarantine", "redrive", "--all"))
	require.EqualValues(t, records, number(t, databaseURL, `SELECT count(*) FROM audit_log`))
	require.EqualValues(t, records, number(t, databaseURL, `SELECT count(DISTINCT lane_offset) FROM audit_log`))
	require.EqualValues(t, records, number(t, databaseURL, `SELECT count(DISTINCT quarantine_id) FROM audit_lane_event WHERE kind = 'redriven'`))
	require.Contains(t, succeed(t, s, "verify"), fmt.Sprintf("%d rows verified", records))
}

// TestQuarantineRefuses: what only an operator can mend ends the commands with exit code 2.
func TestQuarantineRefuses(t *testing.T) {
	empty := settings{"POSTGRES_URL": testkit.Postgres(t, 15)}
	for _, args := range [][]string{{"list"}, {"show", "1"}, {"redrive", "--all"}, {"discard", "--all", "--reason", "a test"}} {
		code, out, errs := execute(t, empty, append([]string{"quarantine"}, args...)...)
		require.Equal(t, 2, code)
		require.Empty(t, out)
		require.Contains(t, errs, "auditsink migrate up")
		code, _, errs = execute(t, nil, append([]string{"quarantine"}, args...)...)
		require.Equal(t, 2, code)
		require.Contains(t, errs, "AUDITSINK_POSTGRES_URL is not set")
	}
	code, _, errs := execute(t, empty, "quarantine")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "which of these?")
}

// TestPrintable: nothing that a terminal would act on is printed as text.
func TestPrintable(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "plain": true, "{\n\t\"a\": 1}": true, "患者👩‍⚕️": true, "a\u2028b": false, "\x1b[31m": false, "a\rb": false, "\x00": false,
		"\xff": false, "\u202e": false, "\u0085": false, "\x7f": false, "\ufeff": false,
	} {
		require.Equal(t, want, content(text).printable(), "%q", text)
	}
}
