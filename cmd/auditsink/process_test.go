package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// patience is how long a test waits for what must come: far more than it takes.
const patience = 2 * time.Minute

func TestMain(m *testing.M) { testkit.Main(m) }

// binary builds the program once for all tests of the process, beside the tests' own, whose folder `go test` removes.
var binary = sync.OnceValues(func() (string, error) {
	tests, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(tests), "auditsink-under-test")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
})

// settings are environment variables, named without their prefix.
type settings map[string]string

// with returns the settings with others in place of, or beside, those of the same name.
func (s settings) with(more settings) settings {
	all := settings{}
	for _, from := range []settings{s, more} {
		for k, v := range from {
			all[k] = v
		}
	}
	return all
}

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer // to be read when it has ended
	errs output
	done chan struct{}
}

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs the program with these settings and no others. It is killed when the test ends.
func start(t *testing.T, s settings, args ...string) *process {
	t.Helper()
	return startTo(t, s, nil, args...)
}

// startTo is start with a standard output of its own, where that isn't nil.
func startTo(t *testing.T, s settings, out *os.File, args ...string) *process {
	t.Helper()
	path, err := binary()
	require.NoError(t, err)
	p := &process{done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), path, args...)
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for k, v := range s {
		p.cmd.Env = append(p.cmd.Env, "AUDITSINK_"+k+"="+v)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	if out != nil {
		p.cmd.Stdout = out
	}
	// In a process group of its own, a ^C for the tests doesn't reach it first.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // wait looks at the state
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("auditsink %s:\n%s", strings.Join(args, " "), tail(p.errs.String()))
		}
	})
	return p
}

func tail(text string) string { return text[max(0, len(text)-6000):] }

// kill ends it at once, as the kernel does with one that takes too much memory.
func (p *process) kill() {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(err)
	}
	<-p.done
}

// terminate asks it to end.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
}

// wait waits for its end and returns its exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("still runs after %s", patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop requires that it ends well when asked to.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.terminate(t)
	require.Zero(t, p.wait(t), p.errs.String())
}

// says waits until standard error matches, and returns the first group.
func (p *process) says(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	eventually(t, "it says "+pattern, func() bool {
		ended := false
		select {
		case <-p.done:
			ended = true
		default:
		}
		found = re.FindStringSubmatch(p.errs.String())
		require.False(t, ended && found == nil, "it ended without saying %s", pattern)
		return found != nil
	})
	return found[len(found)-1]
}

// get asks for a page of a worker.
func (p *process) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	base := p.says(t, `"metrics":"(http://[^"]+)/metrics"`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	return resp.StatusCode, string(text)
}

// metric adds up the series of a metric as Prometheus would scrape them.
func (p *process) metric(t *testing.T, name string) (total float64) {
	t.Helper()
	status, text := p.get(t, "/metrics")
	require.Equal(t, http.StatusOK, status)
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "auditsink_"+name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		var v float64
		_, err := fmt.Sscan(rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:], &v)
		require.NoError(t, err, line)
		total += v
	}
	return total
}

// execute runs a command to its end.
func execute(t *testing.T, s settings, args ...string) (code int, out, errs string) {
	t.Helper()
	p := start(t, s, args...)
	code = p.wait(t)
	return code, p.out.String(), p.errs.String()
}

// succeed runs a command that has to succeed, and returns what it printed.
func succeed(t *testing.T, s settings, args ...string) string {
	t.Helper()
	code, out, errs := execute(t, s, args...)
	require.Zero(t, code, "%s %s", out, errs)
	require.Empty(t, errs)
	return out
}

// eventually waits until a condition holds, for as long as a test may.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testkit.Eventually(t, patience, what, cond)
}
