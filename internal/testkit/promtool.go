package testkit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promtool lets Prometheus' own linter read metrics in the text format, and returns what it said. The
// error is that of "promtool check metrics", nil when it found nothing to complain of.
func Promtool(t testing.TB, metricsText string) (string, error) {
	t.Helper()
	return promtool(t, metricsText, "check", "metrics")
}

// PromtoolRules lets promtool check a file of rules, and run a file of unit tests for them where one is named. It returns what promtool said, and its error.
func PromtoolRules(t testing.TB, rules, tests string) (string, error) {
	t.Helper()
	out, err := promtool(t, "", "check", "rules", rules)
	if err != nil || tests == "" {
		return out, err
	}
	more, err := promtool(t, "", "test", "rules", tests)
	return out + more, err
}

// PromtoolConfig lets promtool check a configuration of Prometheus, with the rules that it loads.
func PromtoolConfig(t testing.TB, path string) (string, error) {
	t.Helper()
	return promtool(t, "", "check", "config", path)
}

func promtool(t testing.TB, input string, args ...string) (string, error) {
	t.Helper()
	path, err := program("promtool", "prometheus")
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(input)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// Prometheus is a running server that scrapes once a second, and judges its rules as often.
type Prometheus struct {
	place   *place
	port    int
	process *process
}

// OwnPrometheus starts a Prometheus for this test alone, which scrapes the targets (host:port) as job auditsink and has the rules of that file. It ends with the test.
func OwnPrometheus(t testing.TB, rules string, targets ...string) *Prometheus {
	t.Helper()
	p := &Prometheus{}
	require.NoError(t, p.start(t.Context(), rules, targets))
	t.Cleanup(func() {
		require.NoError(t, errors.Join(p.process.stop(syscall.SIGTERM), p.place.release()))
	})
	return p
}

func (p *Prometheus) start(ctx context.Context, rules string, targets []string) error {
	binary, err := program("prometheus", "prometheus")
	if err != nil {
		return err
	}
	if rules, err = filepath.Abs(rules); err != nil {
		return err
	}
	if p.place, err = newPlace(ctx, "prometheus"); err != nil {
		return err
	}
	list, err := json.Marshal(targets)
	if err != nil {
		return err
	}
	config := filepath.Join(p.place.dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n  - {job_name: auditsink, static_configs: [{targets: %s}]}\n", rules, list)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	return onFreePorts(func() error {
		if p.port, err = p.place.port(); err != nil {
			return err
		}
		cmd := exec.CommandContext(context.WithoutCancel(ctx), binary, "--config.file", config, "--storage.tsdb.path", filepath.Join(p.place.dir, "data"),
			"--web.listen-address", address(p.port), "--log.level", "warn")
		cmd.Dir = p.place.dir
		if p.process, err = startProcess(cmd, filepath.Join(p.place.dir, "prometheus.log")); err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return p.process.ready(bounded, func(ctx context.Context) error { return p.get(ctx, "/-/ready", nil, nil) })
	})
}

// Query returns the values of a PromQL expression now, one for each series.
func (p *Prometheus) Query(ctx context.Context, expression string) ([]string, error) {
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := p.get(ctx, "/api/v1/query", url.Values{"query": {expression}}, &answer); err != nil {
		return nil, err
	}
	var all []string
	for _, r := range answer.Data.Result {
		all = append(all, fmt.Sprint(r.Value[1]))
	}
	return all, nil
}

// Alerts returns the state of each alert that is pending or firing, by its name.
func (p *Prometheus) Alerts(ctx context.Context) (map[string]string, error) {
	var answer struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if err := p.get(ctx, "/api/v1/alerts", nil, &answer); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, a := range answer.Data.Alerts {
		all[a.Labels["alertname"]] = a.State
	}
	return all, nil
}

func (p *Prometheus) get(ctx context.Context, path string, query url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address(p.port)+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	req.Close = true // a connection that is kept would outlive the test
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("prometheus answers %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}
