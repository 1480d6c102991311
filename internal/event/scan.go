package event

// maxDepth is how deep objects and arrays may nest, the event itself being the first level.
const maxDepth = 32

// member is a known top-level member: where its value stands in the text. The zero member is missing.
type member struct {
	start, end int
	escaped    bool // a string with escapes
}

// scanner reads a JSON text (RFC 8259) once, front to back. It stops at the first fault of the bytes, and
// notes what else is wrong with the text as a whole. Its memory is a small multiple of the text at most:
// nesting costs a bit a level, and a key is remembered only while its object is open.
type scanner struct {
	text    []byte
	depth   int
	object  bool     // whether the innermost open container is one, rather than an array
	objects []uint64 // the same as a bit for each open container
	keys    keys
	fault   fault
	members [fieldCount]member
	seen    uint32 // a bit for each field that the event has, be it null
	details []byte // "{" and the members without a column, joined by ",", as they came

	// The state of the current top-level member.
	field      field
	keyStart   int
	valueStart int
	escaped    bool
}

// reset makes the scanner ready for another text.
func (s *scanner) reset(text []byte) {
	s.text = text
	s.depth = 0
	s.objects = shrink(s.objects, keepBytes/8)[:0]
	s.keys.reset(text)
	s.fault = fault{}
	s.members = [fieldCount]member{}
	s.seen = 0
	s.details = shrink(s.details, keepBytes)[:0]
}

// scan reads the whole text. If it finds a fault of the bytes, members and details are incomplete.
func (s *scanner) scan() {
	text := s.text
	i := skipSpace(text, 0)
	if i < len(text) && text[i] != '{' {
		s.fault.note(fault{reason: NotAnObject, at: i, text: "the value is not an object; send each event as one JSON object"})
		s.keys.ignore = true
	}
	for i >= 0 {
		// A value starts here.
		if s.depth == 1 {
			s.valueStart = i
		}
		if i == len(text) {
			s.cutOff()
			return
		}
		switch text[i] {
		case '"':
			i, s.escaped = s.str(i + 1)
		case '{':
			s.push(i, true)
			i = skipSpace(text, i+1)
			if i == len(text) || text[i] != '}' {
				i = s.key(i)
				continue
			}
			i = s.pop(i)
		case '[':
			s.push(i, false)
			i = skipSpace(text, i+1)
			if i == len(text) || text[i] != ']' {
				continue
			}
			i = s.pop(i)
		default:
			i = s.bare(i)
		}
		if i >= 0 {
			i = s.next(i)
		}
	}
}

// next goes on from the end of a value at i to the start of the following one, closing what is closed in
// between. It returns -1 at the end of the text, and after a fault.
func (s *scanner) next(i int) int {
	text := s.text
	for {
		if s.depth == 1 {
			s.endMember(i)
		}
		i = skipSpace(text, i)
		if s.depth == 0 {
			if i < len(text) {
				return s.invalid(i, "there is more after the JSON value; send one value a record")
			}
			return -1
		}
		if i == len(text) {
			return s.cutOff()
		}
		switch c := text[i]; {
		case c == ',' && s.object:
			return s.key(skipSpace(text, i+1))
		case c == ',':
			return skipSpace(text, i+1)
		case c == '}' && s.object, c == ']' && !s.object:
			i = s.pop(i)
		case s.object:
			return s.invalid(i, `not JSON: a "," or "}" must follow here`)
		default:
			return s.invalid(i, `not JSON: a "," or "]" must follow here`)
		}
	}
}

// key reads the key that must start at i, and the colon. It returns where the value starts, or -1.
func (s *scanner) key(i int) int {
	if i == len(s.text) {
		return s.cutOff()
	}
	if s.text[i] != '"' {
		return s.invalid(i, "not JSON: a key in double quotes must follow here")
	}
	end, escaped := s.str(i + 1)
	if end < 0 {
		return -1
	}
	if !s.keys.ignore {
		s.noteKey(s.keys.locate(i, end, escaped))
	}
	i = skipSpace(s.text, end)
	if i == len(s.text) {
		return s.cutOff()
	}
	if s.text[i] != ':' {
		return s.invalid(i, `not JSON: a ":" must follow the key`)
	}
	return skipSpace(s.text, i+1)
}

// noteKey remembers a key of the innermost object. Those of the event itself that have a meaning, most of all
// keys, are marked rather than compared.
func (s *scanner) noteKey(k key) {
	if s.depth > 1 {
		s.keys.add(k)
		return
	}
	s.field, s.keyStart = fieldOf(s.keys.characters(k)), int(k.at)
	mark := uint32(1) << s.field
	switch {
	case s.field == unknown:
		s.keys.add(k)
	case s.seen&mark != 0:
		s.twice(int(k.at))
	}
	s.seen |= mark
}

// twice notes that an object has the key at i twice. Nothing that further keys could tell matters then.
func (s *scanner) twice(i int) {
	s.fault.note(fault{reason: DuplicateKey, at: i, text: "an object has this key twice; send each key once"})
	s.keys.ignore = true
}

// endMember keeps the top-level member whose value ends at end. One that is null counts as missing.
func (s *scanner) endMember(end int) {
	if s.keys.ignore || s.text[s.valueStart] == 'n' {
		return
	}
	if s.field != unknown {
		s.members[s.field] = member{start: s.valueStart, end: end, escaped: s.escaped}
	}
	if s.field == unknown || s.field == signature {
		separator := byte(',')
		if len(s.details) == 0 {
			separator = '{'
		}
		s.details = append(append(s.details, separator), s.text[s.keyStart:end]...)
	}
}

// push enters the object or array that starts at i.
func (s *scanner) push(i int, object bool) {
	word, bit := s.depth/64, uint64(1)<<(s.depth%64)
	if word == len(s.objects) {
		s.objects = append(s.objects, 0)
	}
	if object {
		s.objects[word] |= bit
		if !s.keys.ignore {
			s.keys.push()
		}
	} else {
		s.objects[word] &^= bit
	}
	s.object = object
	s.depth++
	if s.depth == maxDepth+1 {
		s.fault.note(fault{reason: TooDeep, at: i, text: "objects and arrays nest more than 32 deep; flatten the event"})
	}
}

// pop leaves the innermost object or array, whose last byte is at i, and returns the offset after it.
func (s *scanner) pop(i int) int {
	if s.object && !s.keys.ignore {
		if at := s.keys.pop(); at >= 0 {
			s.twice(at)
		}
	}
	s.depth--
	if outer := s.depth - 1; outer >= 0 {
		s.object = s.objects[outer/64]>>(outer%64)&1 != 0
	}
	return i + 1
}

// invalid notes a fault of the grammar at i and returns -1.
func (s *scanner) invalid(i int, text string) int {
	s.fault.note(fault{reason: InvalidJSON, at: i, text: text})
	return -1
}

// cutOff notes that the text ends too early and returns -1.
func (s *scanner) cutOff() int {
	return s.invalid(len(s.text), "not JSON: the text ends before its value does; send the whole event in one record")
}

// skipSpace returns the offset of the first byte from i on that is not JSON white space.
func skipSpace(text []byte, i int) int {
	const space = 1<<' ' | 1<<'\t' | 1<<'\n' | 1<<'\r'
	for i < len(text) && text[i] <= ' ' && space>>text[i]&1 != 0 {
		i++
	}
	return i
}

// maxText is the longest text, in bytes, that the offsets kept for keys can point into: twice as much has to
// fit 32 bits.
const maxText = 1 << 30
