// A page with one table: a filter, new rows, and several deleted at once.

import { useState } from "preact/hooks";
import { deleteAll } from "./actions.js";
import { nameOf } from "./format.js";
import { Confirm, Filter, matching, Page, Table } from "./ui.jsx";

// fixed(row) says why a row cannot be deleted; create(onClose) is the dialog for a new one, actions what stands in its place.
export function List({ heading, plural, rows, columns, note, create, actions, canDelete, fixed, deleteText = "", onDeleted }) {
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [dialog, setDialog] = useState(null);
  const what = heading.toLowerCase();
  const chosen = rows.filter((row) => selected.has(row.id) && !fixed?.(row));
  return (
    <Page title={heading} actions={<>
      <Filter label={`Filter ${what}`} value={filter} onInput={setFilter} />
      {actions}
      {create && <button type="button" class="primary" onClick={() => setDialog("create")}>New</button>}</>}>
      {note}
      {chosen.length > 0 && canDelete && (
        <div class="bulk" role="toolbar" aria-label={`What to do with the selected ${what}`}><span>{chosen.length} selected</span>
          <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></div>)}
      <Table label={heading} rows={matching(rows, filter)} columns={columns} fixed={fixed}
        selected={selected} onSelect={canDelete ? setSelected : undefined}
        empty={filter && rows.length > 0 ? `No ${what} match the filter.` : `No ${what}.`} />
      {dialog === "create" && create(() => setDialog(null))}
      {dialog === "delete" && <Confirm title={`Delete ${what}`} verb="Delete" onClose={() => setDialog(null)}
        text={chosen.map(nameOf).join(", ") + deleteText}
        onYes={() => { deleteAll(plural, chosen).then(onDeleted); setSelected(new Set()); }} />}
    </Page>
  );
}
