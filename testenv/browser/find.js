// shown reports whether a person can see an element.
const shown = e => {
	if (!e.checkVisibility({ checkVisibilityCSS: true })) return false
	const r = e.getBoundingClientRect()
	return r.width > 0 && r.height > 0
}

const squeeze = text => text.replace(/\s+/g, ' ').trim()

// read is the text of an element as a person reads it.
const read = e => squeeze(e.matches('input, textarea, select') ? e.value : e.innerText ?? e.textContent)

// find returns the visible elements of a selector. For a text they are the smallest ones.
const find = selector => {
	if (!selector.startsWith('text=')) return [...document.querySelectorAll(selector)].filter(shown)
	const wanted = squeeze(selector.slice(5))
	const has = e => squeeze(e.textContent).includes(wanted) && shown(e) && read(e).includes(wanted)
	const all = [...document.body.querySelectorAll('*')].filter(has)
	return all.filter(e => !all.some(other => other !== e && e.contains(other)))
}

const doors = 'a[href], button, summary, label, input, select, textarea, [role=button], [role=tab], [role=menuitem]'

// door returns the element of a selector that a person would click.
const door = selector => {
	if (!selector.startsWith('text=')) return find(selector)[0]
	const wanted = squeeze(selector.slice(5))
	const open = [...document.querySelectorAll(doors)].filter(e => shown(e) && read(e).includes(wanted))
	return open.find(e => read(e) === wanted) ?? open[0] ?? find(selector)[0]
}

const named = e => '<' + e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + '> "' + read(e).slice(0, 60) + '"'

// must returns the element of a selector, or says that there is none.
const must = selector => {
	const e = door(selector)
	if (!e) throw new Error('the page does not show it')
	return e
}

// clickable returns the middle of an element that can be clicked.
const clickable = selector => {
	const e = must(selector)
	if (e.matches(':disabled')) return { Error: named(e) + ' is disabled' }
	e.scrollIntoView({ block: 'center', inline: 'nearest', behavior: 'instant' })
	// A link that is wrapped has no middle of its own, but its first line has.
	const r = e.getClientRects()[0]
	const x = r.left + r.width / 2, y = r.top + r.height / 2
	const top = document.elementFromPoint(x, y)
	if (!top || !(e.contains(top) || top.contains(e) || top.closest('label')?.control === e))
		return { Error: named(e) + ' is covered by ' + (top ? named(top) : 'the edge of the window') }
	return { X: x, Y: y }
}

// corner returns where the page within a frame begins.
const corner = selector => {
	const e = must(selector), r = e.getBoundingClientRect(), s = getComputedStyle(e)
	return { X: r.left + e.clientLeft + parseFloat(s.paddingLeft), Y: r.top + e.clientTop + parseFloat(s.paddingTop) }
}

// focusField makes a field ready for typing. It returns true if it is a list, and chooses from it.
const focusField = (selector, value) => {
	const e = must(selector)
	if (e.matches(':disabled, [readonly]')) throw new Error(named(e) + ' takes no text')
	e.scrollIntoView({ block: 'center', behavior: 'instant' })
	e.focus()
	if (e.tagName === 'SELECT') {
		if (![...e.options].some(o => o.value === value)) throw new Error('no option has the value ' + value)
		e.value = value
		e.dispatchEvent(new Event('input', { bubbles: true }))
		e.dispatchEvent(new Event('change', { bubbles: true }))
		return true
	}
	if (/^(date|time|datetime-local|month|week|color|range)$/.test(e.type)) {
		e.value = value
		e.dispatchEvent(new Event('input', { bubbles: true }))
		e.dispatchEvent(new Event('change', { bubbles: true }))
		return true
	}
	e.select()
	return false
}

// focused describes the element with the focus: whether it is the one, and what is wrong with it.
const focused = selector => {
	const e = document.activeElement
	if (!e || e === document.body) return { Reached: false, Name: 'the document' }
	const wanted = selector.startsWith('text=') ? read(e).includes(squeeze(selector.slice(5))) : e.matches(selector)
	return { Reached: wanted, Name: named(e), Error: e.tagName === 'IFRAME' ? '' : focusFault(e) }
}

const focusFault = e => {
	const r = e.getBoundingClientRect()
	if (r.bottom < 0 || r.top > innerHeight || r.right < 0 || r.left > innerWidth) return 'has the focus outside of the window'
	const marked = n => {
		const s = getComputedStyle(n)
		return (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2) || s.boxShadow !== 'none'
	}
	// A field whose own box is hidden may show its focus on its label.
	const label = e.labels?.[0] ?? e
	if (!marked(e) && !marked(label)) return 'does not show that it has the focus'
	const top = document.elementFromPoint(Math.min(innerWidth - 1, Math.max(0, r.left + r.width / 2)), Math.min(innerHeight - 1, Math.max(0, r.top + r.height / 2)))
	if (top && !e.contains(top) && !top.contains(e) && !label.contains(top)) return 'has the focus and is covered by ' + named(top)
	return ''
}

const count = selector => find(selector).length
const loadedCount = selector => document.readyState === 'complete' ? count(selector) : 0
const text = selector => read(must(selector))
const attribute = (selector, name) => must(selector).getAttribute(name) ?? ''

// layoutFaults returns what does not fit: a page that scrolls sideways, and texts that are cut.
const layoutFaults = () => {
	const faults = []
	const root = document.scrollingElement
	if (root.scrollWidth > root.clientWidth) {
		const wide = [...document.body.querySelectorAll('*')].filter(e => shown(e) && !scrolls(e.parentElement) && !hiddenForEyes(e) &&
			Math.max(e.getBoundingClientRect().right, ownReach(e)) > root.clientWidth + 1)
		faults.push('the page scrolls sideways: ' + root.scrollWidth + ' of ' + root.clientWidth + ' pixels, by ' + wide.slice(-3).map(named).join(', '))
	}
	for (const e of document.body.querySelectorAll('*')) {
		const own = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())
		if (!own || !shown(e) || e.closest('svg, noscript, option, meter, progress, [aria-hidden=true]') || hiddenForEyes(e)) continue
		const s = getComputedStyle(e)
		const clips = v => v === 'hidden' || v === 'clip'
		// A text that ends in an ellipsis must be readable elsewhere.
		if (clips(s.overflowX) && e.scrollWidth > e.clientWidth + 1 && !(s.textOverflow === 'ellipsis' && e.title)) faults.push('the text is cut: ' + named(e))
		else if (clips(s.overflowY) && e.scrollHeight > e.clientHeight + 2) faults.push('the text is cut below: ' + named(e))
		const box = cutter(e)
		if (box) {
			const r = reach(e), b = box.getBoundingClientRect()
			if (r.right > b.right + 1 || r.left < b.left - 1) faults.push('the text is cut by ' + named(box) + ': ' + named(e))
		}
	}
	return faults.length > 5 ? [...faults.slice(0, 5), (faults.length - 5) + ' more'] : faults
}

// reach is the box of what is in an element, which may be larger than the element.
const reach = e => {
	const range = document.createRange()
	range.selectNodeContents(e)
	return range.getBoundingClientRect()
}

// ownReach is how far to the right the texts reach that stand in an element itself.
const ownReach = e => Math.max(0, ...[...e.childNodes].filter(n => n.nodeType === Node.TEXT_NODE).map(n => reach(n).right))

// scrolls reports whether an element, or something around it, cuts or scrolls what is in it.
const scrolls = e => {
	for (; e && e !== document.body && e !== document.documentElement; e = e.parentElement) {
		if (/auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)) return true
	}
	return false
}

// cutter returns what cuts an element and does not scroll, if there is such a thing around it.
const cutter = e => {
	for (e = e.parentElement; e && e !== document.body; e = e.parentElement) {
		const overflow = getComputedStyle(e).overflowX
		if (/auto|scroll/.test(overflow)) return null
		if (/hidden|clip/.test(overflow)) return e
	}
	return null
}

// hiddenForEyes reports whether a text is for screen readers alone.
const hiddenForEyes = e => {
	for (; e && e !== document.body; e = e.parentElement) {
		const r = e.getBoundingClientRect()
		if (r.width <= 1 || r.height <= 1) return true
	}
	return false
}
