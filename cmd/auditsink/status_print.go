package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

const (
	// widest is how much of a name is shown in a column.
	widest = 40
	// mostProblems are shown to people; JSON has all.
	mostProblems = 12
	// longestProblem is how much of one is shown.
	longestProblem = 300
)

// print writes it for people: what is wrong first.
func (s *status) print(out io.Writer) error {
	var page strings.Builder
	s.printHead(&page)
	s.printReplicas(&page)
	s.printLanes(&page)
	s.printRest(&page)
	_, err := io.WriteString(out, page.String())
	return err
}

func (s *status) printHead(page *strings.Builder) {
	linef(page, "auditsink at %s, consumer group %s: %s", timeText(s.At), plain(s.Group), strings.ToUpper(string(s.Health)))
	for i, p := range s.Problems {
		if i == mostProblems {
			linef(page, "  and %d more (--json has them all)", len(s.Problems)-i)
			break
		}
		linef(page, "  %s: %s", p.Severity, shorten(plain(p.Text), longestProblem))
	}
	for _, note := range s.Notes {
		linef(page, "  note: %s", shorten(plain(note), longestProblem))
	}
	linef(page, "")
	t := s.Totals
	if s.Replicas.Source != "" {
		linef(page, "replicas: %d, %d ready; lanes: %d owned, %d halted; lag: %d records, %s; %.1f records/s, %.1f rows/s",
			t.Replicas, t.Ready, t.LanesOwned, t.LanesHalted, t.LagRecords, secondsText(t.LagSeconds), t.RecordsPerSecond, t.RowsPerSecond)
	}
	linef(page, "leader: %s", s.leaderText())
}

func (s *status) leaderText() string {
	l := s.Leader
	switch {
	case l.Source == "" && l.Error == "":
		return "unknown"
	case l.Source == "":
		return "unknown: " + plain(l.Error)
	case l.Expired > 0:
		return fmt.Sprintf("nobody, since %s ago", secondsText(l.Expired))
	case l.Holder == "":
		return "nobody"
	}
	return fmt.Sprintf("%s since %s (%s)", plain(l.Holder), timeText(l.Since), secondsText(s.At.Sub(l.Since).Seconds()))
}

func (s *status) printReplicas(page *strings.Builder) {
	linef(page, "")
	if s.Replicas.Source == "" {
		linef(page, "replicas: %s", cmp.Or(plain(s.Replicas.Error), "unknown"))
		return
	}
	if len(s.Replicas.Items) == 0 {
		linef(page, "replicas: none")
		return
	}
	table(page, "REPLICA\tVERSION\tUP\tREADY\tLEADS\tLANES\tHALTED\tLAG\tBEHIND\tRECORDS/S\tROWS/S\tFLUSH P95\tBUFFERED\tMEMORY\tHEALTH\tALERTS", func(row func(...any)) {
		for _, f := range s.Replicas.Items {
			row(name40(f.Instance), name40(f.Version), secondsText(s.At.Sub(f.Started).Seconds()), yes(f.Ready), yes(f.Leader), f.LanesOwned, f.LanesHalted, f.LagRecords,
				secondsText(f.LagSeconds), decimal(f.RecordsPerSecond), decimal(f.RowsPerSecond), flushText(f.FlushP95), sizeText(f.BufferedBytes), sizeText(f.MemoryBytes),
				cmp.Or(plain(string(f.Health)), "-"), cmp.Or(plain(strings.Join(f.Alerts, ",")), "-"))
		}
	})
}

func (s *status) printLanes(page *strings.Builder) {
	linef(page, "")
	if s.Lanes.Source == "" {
		linef(page, "lanes: %s", cmp.Or(plain(s.Lanes.Error), "none"))
		return
	}
	if len(s.Lanes.Items) == 0 {
		linef(page, "lanes: none yet")
		return
	}
	table(page, "LANE\tSTATE\tPOSITION\tLAG\tBEHIND\tOWNER", func(row func(...any)) {
		for _, l := range s.Lanes.Items {
			position, lag, behind := "-", "-", "-"
			if l.Position != nil {
				position = strconv.FormatInt(*l.Position, 10)
			}
			if l.Lag != nil {
				lag, behind = strconv.FormatInt(l.Lag.Records, 10), secondsText(l.Lag.Seconds)
			}
			row(name40(l.Topic)+"/"+strconv.Itoa(int(l.Partition)), l.State, position, lag, behind, s.ownerText(l))
		}
	})
	hidden := 0
	for _, f := range s.Replicas.Items {
		hidden += f.LanesHidden
	}
	if hidden > 0 {
		linef(page, "of %d more lanes the replicas have no room to tell the lag: see consumer_lag_records of their /metrics", hidden)
	}
}

// ownerText is who has a lane, as far as can be told.
func (s *status) ownerText(l statusLane) string {
	last := name40(cmp.Or(l.Owner, "nobody"))
	switch {
	case l.Group != s.Group:
		return last + " (consumer group " + name40(l.Group) + ")"
	case l.State == laneUnowned:
		return "NOBODY (last: " + last + ")"
	case l.Instance == "" && s.Replicas.Source != fromRedis: // who else there is can't be seen
		return last + " (or who took it last)"
	case l.Owner == "" && l.Instance != "":
		return name40(l.Instance)
	}
	return last
}

func (s *status) printRest(page *strings.Builder) {
	linef(page, "")
	w := tabwriter.NewWriter(page, 0, 0, 2, ' ', 0)
	defer w.Flush() //nolint:errcheck // a strings.Builder takes everything
	rest := func(name, text, why string) {
		switch {
		case why != "" && text != "":
			text += "; " + plain(why)
		case why != "":
			text = plain(why)
		}
		fmt.Fprintf(w, "%s\t%s\n", name, shorten(text, longestProblem)) //nolint:errcheck // a strings.Builder takes everything
	}
	rest("partitions", s.partitionsText(), s.Partitions.Error)
	rest("quarantine", s.quarantineText(), s.Quarantine.Error)
	rest("gaps", s.gapsText(), s.Gaps.Error)
	alerts := "none"
	if s.Replicas.Source == "" {
		alerts = "unknown: no replica could be asked"
	} else if len(s.Totals.Alerts) > 0 {
		alerts = strings.Join(sorted(s.Totals.Alerts), ", ")
	}
	rest("alerts", plain(alerts), "")
}

func (s *status) partitionsText() string {
	p := s.Partitions
	if p.Source == "" {
		return ""
	}
	if p.Source == fromRedis {
		return fmt.Sprintf("ready until %s, as the leader told", timeText(p.ReadyUntil))
	}
	text := fmt.Sprintf("%d, ready until %s", p.Count, timeText(p.ReadyUntil))
	if p.WaysOut > 0 {
		text += fmt.Sprintf("; %d on their way out", p.WaysOut)
	}
	if p.NextDrop != nil {
		text += fmt.Sprintf("; next to go: %s, %s", p.NextDrop.Name, goesText(p.NextDrop))
		if !p.Enforced {
			text += " (not removed while AUDITSINK_RETENTION_ENFORCE is false)"
		}
	}
	return text
}

func (s *status) quarantineText() string {
	q := s.Quarantine
	if q.Source == "" {
		return ""
	}
	var states, reasons []string
	for _, state := range sorted(q.States) {
		states = append(states, fmt.Sprintf("%d %s", q.States[state], plain(state)))
	}
	byCount := sorted(q.Reasons)
	slices.SortStableFunc(byCount, func(a, b string) int { return cmp.Compare(q.Reasons[b], q.Reasons[a]) })
	for _, reason := range byCount {
		reasons = append(reasons, fmt.Sprintf("%s %d", plain(reason), q.Reasons[reason]))
	}
	text := strings.Join(states, ", ")
	if len(reasons) > 0 {
		text += "; new: " + strings.Join(reasons, ", ")
	}
	if age := s.At.Sub(q.At); age >= time.Second {
		text += fmt.Sprintf("; %s ago", secondsText(age.Seconds()))
	}
	return text
}

func (s *status) gapsText() string {
	if s.Gaps.Source == "" {
		return ""
	}
	var kinds []string
	for _, g := range s.Gaps.Items {
		kinds = append(kinds, fmt.Sprintf("%s %d (%d offsets, the last at %s)", plain(g.Kind), g.Gaps, g.Offsets, timeText(g.Latest)))
	}
	return cmp.Or(strings.Join(kinds, ", "), "none")
}

// table writes aligned columns.
func table(page *strings.Builder, head string, rows func(row func(...any))) {
	w := tabwriter.NewWriter(page, 0, 0, 2, ' ', 0)
	defer w.Flush()       //nolint:errcheck // a strings.Builder takes everything
	fmt.Fprintln(w, head) //nolint:errcheck // a strings.Builder takes everything
	rows(func(cells ...any) {
		texts := make([]string, len(cells))
		for i, c := range cells {
			texts[i] = fmt.Sprint(c)
		}
		fmt.Fprintln(w, strings.Join(texts, "\t")) //nolint:errcheck // a strings.Builder takes everything
	})
}

func linef(page *strings.Builder, format string, args ...any) {
	fmt.Fprintf(page, format+"\n", args...)
}

// plain is a text that moves no cursor and breaks no line, whoever wrote it.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ';'
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, text)
}

// name40 is a name that fits a column; what is left out is in its middle, since names differ at their ends.
func name40(name string) string {
	all := []rune(plain(name))
	if len(all) <= widest {
		return cmp.Or(string(all), "-")
	}
	tail := widest / 2
	return string(all[:widest-tail-1]) + "…" + string(all[len(all)-tail:])
}

// shorten cuts a text off at its end.
func shorten(text string, most int) string {
	if all := []rune(text); len(all) > most {
		return string(all[:most-1]) + "…"
	}
	return text
}

// secondsText is a duration for people.
func secondsText(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

func flushText(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return strconv.FormatFloat(seconds*1000, 'f', 0, 64) + "ms"
}

func decimal(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// sorted are the keys of a map.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
