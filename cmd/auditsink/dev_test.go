package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// TestDev runs the program as a person does: what matters most is what is left
// when it has ended.
func TestDev(t *testing.T) {
	program := filepath.Join(t.TempDir(), "auditsink")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	t.Run("once", func(t *testing.T) {
		dir := devFolder(t)
		var errs bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, "dev", "--events", "2000", "--once", "--dir", dir)
		cmd.Stderr = &errs
		out, err := cmd.Output()
		require.NoError(t, err, "%s", errs.String())
		require.Regexp(t, `^\{"produced":2000,"stored":2000,"quarantined":0,"seconds":[0-9.]+\}\n$`, string(out))
		var result devResult
		require.NoError(t, json.Unmarshal(out, &result))
		require.Positive(t, result.Seconds)
		left, err := filepath.Glob(filepath.Join(dir, "once-*"))
		require.NoError(t, err)
		require.Empty(t, left)
		require.NotContains(t, errs.String(), "\x1b", "that's for terminals")
	})

	t.Run("nothing to produce", func(t *testing.T) {
		d := startDev(t, program, "--once", "--events", "0", "--rate", "50")
		d.line(t, "metrics")
		require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
		code, out := d.wait(t)
		require.Equal(t, 0, code)
		require.Regexp(t, `^\{"produced":\d+,"stored":\d+,"quarantined":0,"seconds":[0-9.]+\}\n$`, out)
	})

	t.Run("interrupt and go on", func(t *testing.T) {
		dir := devFolder(t)
		d := startDev(t, program, "--dir", dir, "--rate", "400")
		url := d.line(t, `psql '(.*)'`)
		stored := awaitRows(t, url, 100)
		second := exec.CommandContext(t.Context(), program, "dev", "--dir", dir)
		refused, err := second.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(refused), "another `auditsink dev` uses the folder "+dir)
		require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
		code, out := d.wait(t)
		require.Equal(t, 0, code)
		require.Empty(t, out)
		require.Empty(t, liveIn(t, dir))

		// The next session goes on where this one stopped, and adds its own.
		d = startDev(t, program, "--dir", dir, "--rate", "0", "--events", "500")
		url = d.line(t, `psql '(.*)'`)
		total := awaitRows(t, url, stored+500)
		require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
		code, _ = d.wait(t)
		require.Equal(t, 0, code)

		// Nothing twice: each record has a row of its own, and no event is
		// produced any more.
		d = startDev(t, program, "--dir", dir, "--rate", "0", "--events", "1")
		url = d.line(t, `psql '(.*)'`)
		awaitRows(t, url, total+1)
		require.Equal(t, "t", value(t, url, `SELECT ((SELECT count(*) FROM audit_log) = (SELECT sum(next_offset) FROM audit_lane)
			AND (SELECT count(*) = count(DISTINCT (lane_id, lane_offset)) FROM audit_log))::text::char`))
		require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
		code, _ = d.wait(t)
		require.Equal(t, 0, code)
	})

	t.Run("interrupt at the start", func(t *testing.T) {
		d := startDev(t, program)
		d.line(t, "starting")
		require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
		code, out := d.wait(t)
		require.Equal(t, 0, code)
		require.Empty(t, out)
	})

	t.Run("kill", func(t *testing.T) {
		d := startDev(t, program)
		d.line(t, "metrics")
		require.NotEmpty(t, liveIn(t, d.dir))
		require.NoError(t, d.cmd.Process.Kill())
		code, _ := d.wait(t)
		require.NotEqual(t, 0, code)
		require.Eventually(t, func() bool { return len(liveIn(t, d.dir)) == 0 }, 30*time.Second, 20*time.Millisecond)
	})

	t.Run("PostgreSQL ends", func(t *testing.T) {
		d := startDev(t, program, "--rate", "50")
		url := d.line(t, `psql '(.*)'`)
		awaitRows(t, url, 1)
		// Shuts it down as a person's pg_ctl would.
		pid, err := os.ReadFile(filepath.Join(d.dir, "postgres/data/postmaster.pid"))
		require.NoError(t, err)
		first, _, _ := strings.Cut(string(pid), "\n")
		require.NoError(t, exec.CommandContext(t.Context(), "kill", "-QUIT", first).Run())
		code, _ := d.wait(t)
		require.Equal(t, 1, code)
		require.Contains(t, d.stderr(), filepath.Join(d.dir, "postgres/postgres.log"))
	})
}

// devFolder is one that the user nobody can reach, as t.TempDir isn't.
func devFolder(t *testing.T) string {
	dir, err := os.MkdirTemp("", "auditsink-dev-test-") //nolint:usetesting // the user nobody can't reach t.TempDir
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		require.Empty(t, liveIn(t, dir), "processes left behind")
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// liveIn lists the live processes that work or have their program in dir.
func liveIn(t *testing.T, dir string) (found []string) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	require.NotEmpty(t, entries)
	for _, e := range entries {
		cwd, _ := os.Readlink(filepath.Join(e, "cwd"))
		exe, _ := os.Readlink(filepath.Join(e, "exe"))
		if strings.HasPrefix(cwd, dir) || strings.HasPrefix(exe, dir) {
			found = append(found, e)
		}
	}
	return found
}

// devProcess is a running `auditsink dev`.
type devProcess struct {
	cmd   *exec.Cmd
	dir   string
	out   bytes.Buffer
	lines chan string // of standard error; closed at its end
	seen  []string
}

func startDev(t *testing.T, program string, args ...string) *devProcess {
	d := &devProcess{lines: make(chan string, 10_000)}
	args = append([]string{"dev"}, args...)
	for i, a := range args {
		if a == "--dir" {
			d.dir = args[i+1]
		}
	}
	if d.dir == "" {
		d.dir = devFolder(t)
		args = append(args, "--dir", d.dir)
	}
	// Not ended with the test's context: that would hide what is left.
	d.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	d.cmd.Stdout = &d.out
	errs, err := d.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil { // the test has failed
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	go func() {
		defer close(d.lines)
		s := bufio.NewScanner(errs)
		for s.Scan() {
			d.lines <- s.Text()
		}
		_, _ = io.Copy(io.Discard, errs)
	}()
	return d
}

// line waits for a line of standard error that matches and returns its first
// group, if there is one.
func (d *devProcess) line(t *testing.T, pattern string) string {
	re := regexp.MustCompile(pattern)
	for l := range d.lines {
		d.seen = append(d.seen, l)
		if m := re.FindStringSubmatch(l); m != nil {
			return m[len(m)-1]
		}
	}
	require.Failf(t, "not printed", "%s in:\n%s", pattern, strings.Join(d.seen, "\n"))
	return ""
}

// wait waits for its end and returns the exit code (−1: killed) and standard
// output.
func (d *devProcess) wait(t *testing.T) (code int, out string) {
	for l := range d.lines {
		d.seen = append(d.seen, l)
	}
	err := d.cmd.Wait()
	if err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	t.Log(d.stderr())
	return d.cmd.ProcessState.ExitCode(), d.out.String()
}

func (d *devProcess) stderr() string { return strings.Join(d.seen, "\n") }

// awaitRows waits until at least so many rows are stored, and returns how many.
func awaitRows(t *testing.T, url string, least int) (stored int) {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	require.Eventually(t, func() bool {
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM audit_log").Scan(&stored)
		return err == nil && stored >= least
	}, time.Minute, 20*time.Millisecond)
	return stored
}

func value(t *testing.T, url, sql string) (text string) {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(t.Context())) }()
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&text))
	return text
}
