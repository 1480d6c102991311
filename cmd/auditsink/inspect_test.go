package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

const noon = "2026-11-23T12:00:00Z"

// inspect runs the command and returns what it printed, a line each.
func inspect(t *testing.T, in io.Reader, args ...string) (code int, lines []string, errs string) {
	var out, errOut bytes.Buffer
	code = run(t.Context(), append([]string{"inspect", "--now", noon}, args...), in, &out, &errOut)
	text := out.String()
	if text == "" {
		return code, nil, errOut.String()
	}
	require.True(t, strings.HasSuffix(text, "\n"))
	return code, strings.Split(strings.TrimSuffix(text, "\n"), "\n"), errOut.String()
}

type answer struct{ Outcome, Hash, Prehash, Reason, Detail string }

func answers(t *testing.T, lines []string) (all []answer) {
	for _, line := range lines {
		var a answer
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		require.NoError(t, d.Decode(&a), line)
		all = append(all, a)
	}
	return all
}

func TestInspectVectors(t *testing.T) {
	text, err := os.ReadFile("../../hashing/testdata/event_hash.json")
	require.NoError(t, err)
	var vectors []struct{ Event, Prehash, SHA256 string }
	require.NoError(t, json.Unmarshal(text, &vectors))
	require.NotEmpty(t, vectors)
	var in strings.Builder
	for _, v := range vectors {
		in.WriteString(v.Event + "\n")
	}
	code, lines, errs := inspect(t, strings.NewReader(in.String()), "--base64")
	require.Equal(t, 0, code, errs)
	got := answers(t, lines)
	require.Len(t, got, len(vectors))
	for i, v := range vectors {
		require.Equal(t, answer{Outcome: "row", Hash: v.SHA256, Prehash: v.Prehash}, got[i], "vector %d", i)
	}
}

func TestInspectCorpus(t *testing.T) {
	text, err := os.ReadFile("../../internal/event/testdata/events.json")
	require.NoError(t, err)
	var corpus []struct {
		Name, Expect, Reason string
		Value                *string
	}
	require.NoError(t, json.Unmarshal(text, &corpus))
	require.NotEmpty(t, corpus)
	var in strings.Builder
	for _, c := range corpus {
		if c.Value != nil { // a tombstone is an empty line
			in.WriteString(*c.Value)
		}
		in.WriteString("\n")
	}
	file := filepath.Join(t.TempDir(), "corpus")
	require.NoError(t, os.WriteFile(file, []byte(in.String()), 0o600))
	code, lines, errs := inspect(t, nil, "--base64", file)
	require.Equal(t, 0, code, errs)
	got := answers(t, lines)
	require.Len(t, got, len(corpus))
	for i, c := range corpus {
		require.Equal(t, c.Expect, got[i].Outcome, c.Name)
		require.Equal(t, c.Reason, got[i].Reason, c.Name)
		if c.Expect == "quarantine" {
			require.NotEmpty(t, got[i].Detail, c.Name)
		}
	}
}

func TestInspectLines(t *testing.T) {
	const event = `{"timestamp":"2026-11-23T11:00:00Z","action":"a<b>&c\u2028 é","status":"success"}`
	const row, empty, invalid = "row", "empty", "invalid_json"
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"nothing at all":            {"", nil},
		"a line feed":               {"\n", []string{empty}},
		"two line feeds":            {"\n\n", []string{empty, empty}},
		"one":                       {event + "\n", []string{row}},
		"without a last line feed":  {event, []string{row}},
		"two without a last":        {event + "\n" + event, []string{row, row}},
		"empty in the middle":       {event + "\n\n" + event + "\n", []string{row, empty, row}},
		"CRLF: CR is white space":   {event + "\r\n", []string{row}},
		"only a CR":                 {"\r\n", []string{invalid}},
		"other ends of lines":       {event + "\u2028" + event + "\n", []string{invalid}},
		"a form feed ends no line":  {event + "\f" + event + "\n", []string{invalid}},
		"quarantined then accepted": {"x\n" + event + "\n", []string{invalid, row}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, reader := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in)), iotest.DataErrReader(strings.NewReader(c.in))} {
				code, lines, errs := inspect(t, reader)
				require.Equal(t, 0, code, errs)
				var got []string
				for _, a := range answers(t, lines) {
					if a.Outcome == "row" {
						got = append(got, row)
						require.Contains(t, a.Prehash, "action:\"a<b>&c\u2028 é\"|")
						require.Len(t, a.Hash, 64)
					} else {
						got = append(got, a.Reason)
					}
				}
				require.Equal(t, c.want, got)
			}
		})
	}
	_, lines, _ := inspect(t, strings.NewReader(event))
	require.Contains(t, lines[0], "a<b>&c", "escaped for HTML")
}

func TestInspectClock(t *testing.T) {
	in := func() io.Reader {
		return strings.NewReader(`{"timestamp":"2026-11-24T12:00:00Z","action":"a","status":"success"}` + "\n" +
			`{"timestamp":"2026-11-24T12:00:00.000001Z","action":"a","status":"success"}`)
	}
	_, lines, _ := inspect(t, in())
	got := answers(t, lines)
	require.Equal(t, "row", got[0].Outcome)
	require.Equal(t, "timestamp_out_of_range", got[1].Reason)
	_, lines, _ = inspect(t, in(), "--now", "2026-11-23T13:00:00.5+01:00") // the last one holds
	got = answers(t, lines)
	require.Equal(t, []string{"row", "row"}, []string{got[0].Outcome, got[1].Outcome})

	t.Setenv("AUDITSINK_RETENTION_HORIZON_DAYS", "1")
	_, lines, _ = inspect(t, in(), "--now", "2026-11-26T00:00:00Z")
	require.Equal(t, "timestamp_out_of_range", answers(t, lines)[0].Reason)
}

func TestInspectSignature(t *testing.T) {
	t.Setenv("AUDITSINK_EVENT_SIGNATURE_KEY", "secret")
	_, lines, _ := inspect(t, strings.NewReader(`{"timestamp":"`+noon+`","action":"a","status":"success","signature":"00"}`))
	require.Equal(t, "signature_mismatch", answers(t, lines)[0].Reason)
}

// endless is a line of any length, which would fill the memory.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), e.left))
	for i := range p[:n] {
		p[i] = 'A'
	}
	e.left -= int64(n)
	return n, nil
}

func TestInspectTooLarge(t *testing.T) {
	t.Setenv("AUDITSINK_EVENT_MAX_BYTES", "4096")
	for _, args := range [][]string{nil, {"--base64"}} {
		var lines []string
		allocated := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				var code int
				// 64 MiB, and a multiple of four for base64.
				in := io.MultiReader(&endless{64 << 20}, strings.NewReader("\n\n"))
				code, lines, _ = inspect(t, in, args...)
				require.Equal(t, 0, code)
			}
		}).AllocedBytesPerOp()
		got := answers(t, lines)
		require.Len(t, got, 2)
		require.Equal(t, "too_large", got[0].Reason)
		require.Equal(t, "empty", got[1].Reason)
		require.Less(t, allocated, int64(4<<20))
	}
	// The limit itself is fine: only what is in the line is wrong.
	_, lines, _ := inspect(t, strings.NewReader(strings.Repeat("A", 4096)+"\n"+strings.Repeat("A", 4097)))
	got := answers(t, lines)
	require.Equal(t, []string{"invalid_json", "too_large"}, []string{got[0].Reason, got[1].Reason})
}

func TestInspectRefuses(t *testing.T) {
	good := base64.StdEncoding.EncodeToString([]byte("x"))
	for name, c := range map[string]struct {
		in, want string
		args     []string
		code     int
		answers  int
	}{
		"not base64":           {good + "\n\n!secret!\n" + good, "line 3 of the input isn't base64", []string{"--base64"}, 2, 2},
		"cut off":              {good + "\nQUI", "line 2 of the input isn't base64", []string{"--base64"}, 2, 1},
		"no file":              {"", "no-such-file", []string{"no-such-file"}, 1, 0},
		"two files":            {"", "at most 1 arg", []string{"a", "b"}, 2, 0},
		"a clock that's wrong": {"", "now", []string{"--now", "yesterday"}, 2, 0},
		"unknown flag":         {"", "unknown flag", []string{"--nope"}, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			code, lines, errs := inspect(t, strings.NewReader(c.in), c.args...)
			require.Equal(t, c.code, code, errs)
			require.Contains(t, errs, c.want)
			require.NotContains(t, errs, "secret")
			require.Len(t, lines, c.answers)
		})
	}
	t.Setenv("AUDITSINK_EVENT_MAX_BYTES", "many")
	code, _, errs := inspect(t, strings.NewReader(""))
	require.Equal(t, 2, code)
	require.Contains(t, errs, "AUDITSINK_EVENT_MAX_BYTES")
}

// TestInspectAnswersAtOnce: who types events sees each answer before the next.
func TestInspectAnswersAtOnce(t *testing.T) {
	in, typing := io.Pipe()
	answers, out := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(t.Context(), []string{"inspect"}, in, out, io.Discard)
		require.NoError(t, out.Close())
	}()
	for range 3 {
		_, err := io.WriteString(typing, "x\n")
		require.NoError(t, err)
		buf := make([]byte, 1000)
		n, err := answers.Read(buf)
		require.NoError(t, err)
		require.Contains(t, string(buf[:n]), `"reason":"invalid_json"`)
	}
	require.NoError(t, typing.Close())
	require.Equal(t, 0, <-done)
}
