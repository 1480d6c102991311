package main

import (
	"fmt"
	"slices"
	"strings"

	"auditsink/internal/fleet"
	"auditsink/metrics"
	"auditsink/partitions"
	"auditsink/sink"
)

// fill takes from Redis what the database didn't tell.
func (s *status) fill() {
	if s.Leader.Source == "" {
		for _, f := range s.Replicas.Items {
			if f.Leader && !f.LeaderSince.Before(s.Leader.Since) {
				s.Leader.Source, s.Leader.Holder, s.Leader.Since = s.Replicas.Source, f.Instance, f.LeaderSince
			}
		}
	}
	if s.summary == nil {
		return
	}
	if s.Partitions.Source == "" && !s.summary.ReadyUntil.IsZero() {
		s.Partitions.Source, s.Partitions.ReadyUntil = fromRedis, s.summary.ReadyUntil
	}
	if s.Quarantine.Source == "" && s.summary.Quarantine != nil {
		s.Quarantine.Source, s.Quarantine.At = fromRedis, s.summary.CountedAt
		s.Quarantine.QuarantineTally = sink.QuarantineTally{States: s.summary.Quarantine, Reasons: s.summary.Reasons}
	}
}

// own finds out which replica has each lane, with its lag, and sums the replicas up.
func (s *status) own() {
	s.Totals = fleet.Total(s.Replicas.Items)
	lanes := map[string]*statusLane{}
	for i := range s.Lanes.Items {
		if l := &s.Lanes.Items[i]; l.Group == s.Group {
			lanes[l.Name()] = l
		}
	}
	for _, f := range s.Replicas.Items {
		for _, has := range f.Lanes {
			l := lanes[has.Name()]
			switch {
			case l == nil:
				l = &statusLane{Lane: has, Group: s.Group, State: laneActive, Owner: f.Owner}
				lanes[has.Name()] = l
			case l.Instance != "" && l.Owner != f.Owner: // two say so, one of them a zombie: audit_lane knows
				continue
			}
			l.Instance, l.Lag = f.Instance, has.Lag
			if l.Position == nil {
				l.Position = has.Position
			}
			if l.Halted == "" {
				l.Halted = has.Halted
			}
		}
	}
	if s.Lanes.Source == "" && len(lanes) > 0 {
		s.Lanes.Source = s.Replicas.Source
	}
	all := slices.DeleteFunc(slices.Clone(s.Lanes.Items), func(l statusLane) bool { return l.Group == s.Group }) // lanes points into the items
	for _, l := range lanes {
		switch {
		case l.Halted != "":
			l.State = laneHalted
		case l.Instance == "" && s.Replicas.Source == fromRedis:
			l.State = laneUnowned
		}
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b statusLane) int {
		if by := a.Compare(b.Lane); by != 0 {
			return by
		}
		return strings.Compare(a.Group, b.Group)
	})
	s.Lanes.Items = all
}

// judge tells what is wrong.
func (s *status) judge(interval partitions.Interval) {
	say := func(severity metrics.Status, format string, args ...any) {
		s.Problems = append(s.Problems, problem{severity, fmt.Sprintf(format, args...)})
	}
	switch {
	case s.Replicas.Source == "":
		say(metrics.Warning, "no replica could be asked: %s", s.Replicas.Error)
	case s.Totals.Replicas == 0:
		say(metrics.Critical, "no replica of consumer group %q runs: nothing is stored", s.Group)
	case s.Totals.Ready == 0:
		say(metrics.Critical, "no replica is ready")
	}
	for _, f := range s.Replicas.Items {
		if !f.Ready {
			say(metrics.Warning, "%s is not ready: %s", f.Instance, f.NotReady)
		}
		for _, name := range sorted(f.Components) {
			switch f.Components[name] {
			case metrics.Healthy:
			case metrics.Critical:
				say(metrics.Critical, "%s: component %s is critical", f.Instance, name)
			default: // also what only a later version knows
				say(metrics.Warning, "%s: component %s is %s", f.Instance, name, f.Components[name])
			}
		}
	}
	for _, l := range s.Lanes.Items {
		switch l.State {
		case laneHalted:
			say(metrics.Critical, "lane %s has halted: %s (auditsink lanes accept, once the cause is mended)", l.Name(), l.Halted)
		case laneUnowned:
			say(metrics.Warning, "lane %s is nobody's: its records wait", l.Name())
		}
	}
	for _, alert := range sorted(s.Totals.Alerts) {
		rule := ruleOf(alert)
		say(rule.Severity, "alert %s (%s): %s: %s", alert, few(s.Totals.Alerts[alert]), rule.Summary, rule.Remedy)
	}
	if !s.view.Now.IsZero() && partitions.RunsOut(s.At, s.view.Catalog.Partitions, interval) {
		say(metrics.Critical, "the partitions run out: there are some until %s only (auditsink partitions plan)", timeText(s.Partitions.ReadyUntil))
	}
	if s.Leader.Source == fromPostgres && (s.Leader.Holder == "" || s.Leader.Expired > 0) {
		say(metrics.Warning, "nobody leads: the partitions are not maintained")
	}
	for _, part := range []struct{ name, err string }{
		{"the leader", s.Leader.Error},
		{"lanes", s.Lanes.Error},
		{"partitions", s.Partitions.Error},
		{"quarantine", s.Quarantine.Error},
		{"gaps", s.Gaps.Error},
	} {
		if part.err != "" {
			say(metrics.Warning, "%s: %s", part.name, part.err)
		}
	}
	slices.SortStableFunc(s.Problems, func(a, b problem) int { return b.Severity.Rank() - a.Severity.Rank() })
	s.Health = metrics.Healthy
	if len(s.Problems) > 0 {
		s.Health = s.Problems[0].Severity
	}
}

// ruleOf is the rule of an alert. One that another version raised has no words here.
func ruleOf(alert string) metrics.Rule {
	for _, r := range metrics.Rules() {
		if r.Name == alert {
			return r
		}
	}
	return metrics.Rule{Severity: metrics.Warning, Summary: "this version of auditsink doesn't know it", Remedy: "see the log of that replica"}
}

// few names the first of many.
func few(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
