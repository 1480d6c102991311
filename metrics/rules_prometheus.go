package metrics

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// PrometheusName is what the alert is called in Prometheus: AuditsinkLagGrowing.
func (r Rule) PrometheusName() string {
	name := "Auditsink"
	for word := range strings.SplitSeq(r.Name, "_") {
		name += strings.ToUpper(word[:1]) + word[1:]
	}
	return name
}

// Expression is the whole condition in PromQL.
func (r Rule) Expression() string {
	compare := ">"
	if r.Below {
		compare = "<"
	}
	value := strings.ReplaceAll(r.PromQL, "$window", promDuration(r.Window))
	return fmt.Sprintf("(%s) %s %s", value, compare, strconv.FormatFloat(r.Threshold, 'f', -1, 64))
}

// PrometheusRules are the rules as a rule file of Prometheus. Those that are off are left out.
func PrometheusRules(rules []Rule) ([]byte, error) {
	type alert struct {
		Alert       string            `yaml:"alert"`
		Expr        string            `yaml:"expr"`
		For         string            `yaml:"for,omitempty"`
		Labels      map[string]string `yaml:"labels"`
		Annotations map[string]string `yaml:"annotations"`
	}
	type group struct {
		Name  string  `yaml:"name"`
		Rules []alert `yaml:"rules"`
	}
	g := group{Name: "auditsink"}
	for _, r := range rules {
		if r.Off {
			continue
		}
		a := alert{
			Alert: r.PrometheusName(), Expr: r.Expression(), Labels: map[string]string{"severity": string(r.Severity)},
			Annotations: map[string]string{"summary": r.Summary, "description": r.Value + ": {{ $value }}", "remedy": r.Remedy},
		}
		if r.For > 0 {
			a.For = promDuration(r.For)
		}
		g.Rules = append(g.Rules, a)
	}
	text, err := yaml.Marshal(map[string][]group{"groups": {g}})
	if err != nil {
		return nil, fmt.Errorf("write the rules as YAML: %w", err)
	}
	return append([]byte("# Made from the table in metrics/rules.go by: go test ./metrics -run Rules -update\n"), text...), nil
}

// promDuration is a duration as Prometheus writes it.
func promDuration(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d%unit.of == 0 {
			return fmt.Sprintf("%d%s", d/unit.of, unit.name)
		}
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}
